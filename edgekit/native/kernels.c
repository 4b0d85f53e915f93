/* The table of kernels, what is chosen from it, and the C interface's functions on it. */
#include "kernels.h"

#include <string.h>

#include "edgekit_native.h"

typedef struct {
    const char *name;
    uint64_t needs; /* feature bits without which its kernels must not be called */
    const void *kernels[EK_FAMILY_COUNT]; /* NULL: this family has none of its own */
    int32_t built;
} instruction_set;

static const char *const families[EK_FAMILY_COUNT] = {
    [EK_FAMILY_BDENSE] = "binary_dense",
    [EK_FAMILY_XNOR] = "xnor",
    [EK_FAMILY_DOT8] = "dot8",
};

#define BDENSE(isa) [EK_FAMILY_BDENSE] = &ek_bdense_##isa
#define XNOR(isa) [EK_FAMILY_XNOR] = &ek_xnor_##isa
#define DOT8(isa) [EK_FAMILY_DOT8] = &ek_dot8_##isa

/* Slowest first: the last one that this CPU can run is chosen. */
static const instruction_set sets[] = {
    {"reference", 0, {BDENSE(reference), XNOR(reference), DOT8(reference)}, 1},
    {"portable", 0, {BDENSE(portable), XNOR(portable), DOT8(portable)}, 1},
#ifdef EK_HAVE_NEON
    {"neon", EK_BIT(EK_CPU_NEON), {BDENSE(neon)}, 1},
#else
    {"neon", EK_BIT(EK_CPU_NEON), {NULL}, 0},
#endif
#ifdef EK_HAVE_AVX2
    {"avx2", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX2), {BDENSE(avx2)}, 1},
#else
    {"avx2", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX2), {NULL}, 0},
#endif
#ifdef EK_HAVE_AVX512
    {"avx512", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX512F) | EK_BIT(EK_CPU_AVX512VPOPCNTDQ), {BDENSE(avx512), XNOR(avx512)}, 1},
#else
    {"avx512", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX512F) | EK_BIT(EK_CPU_AVX512VPOPCNTDQ), {NULL}, 0},
#endif
};
enum { SETS = sizeof sets / sizeof *sets };

/* Bit i: set i can run here. Looked up at the first call and kept; never 0, since the reference always runs. Two
 * threads that come first together write the same number. */
static uint32_t runnable(void) {
    static _Atomic uint32_t kept = 0;
    uint32_t rows = kept;
    if (rows != 0) return rows;
    const uint64_t features = ek_cpu_features();
    for (int32_t i = 0; i < SETS; i++)
        if (sets[i].built && (sets[i].needs & ~features) == 0) rows |= UINT32_C(1) << i;
    return kept = rows;
}

static int32_t can_run(int32_t set) { return (int32_t)(runnable() >> set & 1); }

static int32_t can_run_family(int32_t set, int family) { return can_run(set) && sets[set].kernels[family] != NULL; }

/* The fastest set at or below `from` that has a kernel of this family and runs here; -1: none. */
static int32_t fastest(int family, int32_t from) {
    while (from >= 0 && !can_run_family(from, family)) from--;
    return from;
}

const void *ek_find_kernel(int family, const char *name) {
    int32_t from = SETS - 1;
    if (name != NULL) {
        while (from >= 0 && strcmp(sets[from].name, name) != 0) from--;
        if (from < 0 || !can_run(from)) return NULL;
    }
    const int32_t set = fastest(family, from);
    return set < 0 ? NULL : sets[set].kernels[family];
}

int32_t ek_abi_version(void) { return EK_ABI_VERSION; }

int32_t ek_kernel_count(void) { return EK_FAMILY_COUNT * SETS; }

int32_t ek_kernel_get(int32_t index, ek_kernel_info *info) {
    if (info == NULL || index < 0 || index >= EK_FAMILY_COUNT * SETS) return EK_BAD_ARGUMENT;
    const int32_t family = index / SETS, set = index % SETS;
    *info = (ek_kernel_info){
        .family = families[family],
        .name = sets[set].name,
        .built = sets[set].kernels[family] != NULL,
        .supported = can_run_family(set, family),
        .chosen = set == fastest(family, SETS - 1),
    };
    return EK_OK;
}

int32_t ek_binary_dense(const uint64_t *x, const uint64_t *w, int32_t *out, int64_t rows, int64_t n, int32_t kernel) {
    if (n < 1 || n > INT32_MAX || rows < 0 || kernel < EK_CHOSEN || kernel >= SETS) return EK_BAD_ARGUMENT;
    if (rows == 0) return EK_OK;
    if (x == NULL || w == NULL || out == NULL) return EK_BAD_ARGUMENT;
    if (kernel == EK_CHOSEN) kernel = fastest(EK_FAMILY_BDENSE, SETS - 1);
    else if (!can_run_family(kernel, EK_FAMILY_BDENSE)) return EK_NO_KERNEL;
    const ek_bdense_kernel *found = sets[kernel].kernels[EK_FAMILY_BDENSE];
    found->run(x, w, out, (size_t)rows, (size_t)n);
    return EK_OK;
}
