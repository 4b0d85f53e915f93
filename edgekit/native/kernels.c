/* The table of kernels, what is chosen from it, and the C interface's functions. */
#include "kernels.h"

#include "edgekit_native.h"

#ifndef EK_HAVE_AVX2
#define ek_bdense_avx2 NULL
#endif
#ifndef EK_HAVE_AVX512
#define ek_bdense_avx512 NULL
#endif
#ifndef EK_HAVE_NEON
#define ek_bdense_neon NULL
#endif

typedef struct {
    const char *name;
    ek_bdense_kernel *run; /* NULL: not built for this architecture */
    uint64_t needs;        /* feature bits without which it must not be called */
} bdense_row;

/* Slowest first: the last one that this CPU can run is chosen. */
static const bdense_row bdense[] = {
    {"reference", ek_bdense_reference, 0},
    {"portable", ek_bdense_portable, 0},
    {"neon", ek_bdense_neon, EK_BIT(EK_CPU_NEON)},
    {"avx2", ek_bdense_avx2, EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX2)},
    {"avx512", ek_bdense_avx512, EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX512F) | EK_BIT(EK_CPU_AVX512VPOPCNTDQ)},
};
enum { BDENSE_COUNT = sizeof bdense / sizeof *bdense };

/* Bit i: row i can run here. Looked up at the first call and kept; never 0, since the reference always runs. Two
 * threads that come first together write the same number. */
static uint32_t runnable(void) {
    static _Atomic uint32_t kept = 0;
    uint32_t rows = kept;
    if (rows != 0) return rows;
    const uint64_t features = ek_cpu_features();
    for (int32_t i = 0; i < BDENSE_COUNT; i++)
        if (bdense[i].run != NULL && (bdense[i].needs & ~features) == 0) rows |= UINT32_C(1) << i;
    return kept = rows;
}

static int32_t can_run(int32_t index) { return (int32_t)(runnable() >> index & 1); }

static int32_t chosen(void) {
    int32_t best = BDENSE_COUNT - 1;
    while (!can_run(best)) best--;
    return best;
}

int32_t ek_abi_version(void) { return EK_ABI_VERSION; }

int32_t ek_kernel_count(void) { return BDENSE_COUNT; }

int32_t ek_kernel_get(int32_t index, ek_kernel_info *info) {
    if (info == NULL || index < 0 || index >= BDENSE_COUNT) return EK_BAD_ARGUMENT;
    const bdense_row *row = &bdense[index];
    *info = (ek_kernel_info){
        .family = "binary_dense",
        .name = row->name,
        .built = row->run != NULL,
        .supported = can_run(index),
        .chosen = index == chosen(),
    };
    return EK_OK;
}

int32_t ek_binary_dense(const uint64_t *x, const uint64_t *w, int32_t *out, int64_t rows, int64_t n, int32_t kernel) {
    if (n < 1 || n > INT32_MAX || rows < 0 || kernel < EK_CHOSEN || kernel >= BDENSE_COUNT) return EK_BAD_ARGUMENT;
    if (rows == 0) return EK_OK;
    if (x == NULL || w == NULL || out == NULL) return EK_BAD_ARGUMENT;
    if (kernel == EK_CHOSEN) kernel = chosen();
    else if (!can_run(kernel)) return EK_NO_KERNEL;
    bdense[kernel].run(x, w, out, (size_t)rows, (size_t)n);
    return EK_OK;
}
