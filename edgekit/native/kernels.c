/* The table of kernels, what is chosen from it, and the C interface's functions on it. */
#include "kernels.h"

#include <string.h>

#include "edgekit_native.h"

enum { REFERENCE, PORTABLE, NEON, AVX2, AVX512, SETS }; /* slowest first */

static const struct {
    const char *name;
    uint64_t needs; /* feature bits without which its kernels must not be called */
} sets[SETS] = {
    [REFERENCE] = {"reference", 0},
    [PORTABLE] = {"portable", 0},
    [NEON] = {"neon", EK_BIT(EK_CPU_NEON)},
    [AVX2] = {"avx2", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX2)},
    [AVX512] = {"avx512", EK_BIT(EK_CPU_POPCNT) | EK_BIT(EK_CPU_AVX512F) | EK_BIT(EK_CPU_AVX512BW) |
                              EK_BIT(EK_CPU_AVX512VPOPCNTDQ)},
};

static const char *const families[EK_FAMILY_COUNT] = {
    [EK_FAMILY_XNOR] = "xnor",
    [EK_FAMILY_DOT8] = "dot8",
};

/* Every kernel that is built. Of two for the same family and set, the later one is taken where it runs. */
static const struct {
    int32_t set, family;
    uint64_t also; /* feature bits that it needs besides its set's */
    const void *kernel;
} kernels[] = {
    {REFERENCE, EK_FAMILY_XNOR, 0, &ek_xnor_reference},
    {REFERENCE, EK_FAMILY_DOT8, 0, &ek_dot8_reference},
    {PORTABLE, EK_FAMILY_XNOR, 0, &ek_xnor_portable},
    {PORTABLE, EK_FAMILY_DOT8, 0, &ek_dot8_portable},
#ifdef EK_HAVE_NEON
    {NEON, EK_FAMILY_XNOR, 0, &ek_xnor_neon},
    {NEON, EK_FAMILY_DOT8, 0, &ek_dot8_neon},
#endif
#ifdef EK_HAVE_NEON_DOTPROD
    {NEON, EK_FAMILY_DOT8, EK_BIT(EK_CPU_DOTPROD), &ek_dot8_neon_dotprod},
#endif
#ifdef EK_HAVE_AVX2
    {AVX2, EK_FAMILY_XNOR, 0, &ek_xnor_avx2},
    {AVX2, EK_FAMILY_DOT8, 0, &ek_dot8_avx2},
#endif
#ifdef EK_HAVE_AVX512
    {AVX512, EK_FAMILY_XNOR, 0, &ek_xnor_avx512},
#endif
#ifdef EK_HAVE_AVX512_VNNI
    {AVX512, EK_FAMILY_DOT8, EK_BIT(EK_CPU_AVX512VNNI), &ek_dot8_avx512},
#endif
};
enum { KERNELS = sizeof kernels / sizeof *kernels };

_Static_assert(EK_CPU_COUNT < 32, "the features fit what is kept of them");

#if __GCC_ATOMIC_INT_LOCK_FREE < 2 /* Cortex-M0: atomics are calls into a library there, and nothing is looked up */
static uint64_t features(void) { return ek_cpu_features(); }
#else
/* The CPU's features, looked up at the first call and kept. Two threads that come first together write the same. */
static uint64_t features(void) {
    const uint32_t known = UINT32_C(1) << 31;
    static _Atomic uint32_t kept = 0;
    uint32_t found = kept;
    if (found == 0) kept = found = (uint32_t)ek_cpu_features() | known;
    return found & ~known;
}
#endif

static int32_t has(uint64_t needed) { return (needed & ~features()) == 0; }

/* The set's kernel of a family; with `runnable`, only one that this CPU can run. NULL: there is none. */
static const void *kernel_of(int32_t family, int32_t set, int32_t runnable) {
    for (int32_t i = KERNELS - 1; i >= 0; i--)
        if (kernels[i].family == family && kernels[i].set == set &&
            (!runnable || has(sets[set].needs | kernels[i].also)))
            return kernels[i].kernel;
    return NULL;
}

/* The fastest set at or below `from` that has a kernel of this family and runs here; -1: none. */
static int32_t fastest(int32_t family, int32_t from) {
    while (from >= 0 && kernel_of(family, from, 1) == NULL) from--;
    return from;
}

/* Whether any kernel of the set is built and this CPU has what the set needs. */
static int32_t can_run(int32_t set) {
    for (int32_t i = 0; i < KERNELS; i++)
        if (kernels[i].set == set) return has(sets[set].needs);
    return 0;
}

const void *ek_find_kernel(int family, const char *name) {
    int32_t from = SETS - 1;
    if (name != NULL) {
        while (from >= 0 && strcmp(sets[from].name, name) != 0) from--;
        if (from < 0 || !can_run(from)) return NULL;
    }
    const int32_t set = fastest(family, from);
    return set < 0 ? NULL : kernel_of(family, set, 1);
}

int32_t ek_abi_version(void) { return EK_ABI_VERSION; }

int32_t ek_kernel_count(void) { return EK_FAMILY_COUNT * SETS; }

int32_t ek_kernel_get(int32_t index, ek_kernel_info *info) {
    if (info == NULL || index < 0 || index >= EK_FAMILY_COUNT * SETS) return EK_BAD_ARGUMENT;
    const int32_t family = index / SETS, set = index % SETS;
    *info = (ek_kernel_info){
        .family = families[family],
        .name = sets[set].name,
        .built = kernel_of(family, set, 0) != NULL,
        .supported = kernel_of(family, set, 1) != NULL,
        .chosen = set == fastest(family, SETS - 1),
    };
    return EK_OK;
}
