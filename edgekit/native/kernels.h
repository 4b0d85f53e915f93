/* Inside the library: the CPU's feature bits, and the table of kernels: one row for each family and instruction set. */
#ifndef EDGEKIT_KERNELS_H
#define EDGEKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "linear.h"

enum {
    EK_CPU_POPCNT,
    EK_CPU_AVX2,
    EK_CPU_FMA,
    EK_CPU_AVX512F,
    EK_CPU_AVX512BW,
    EK_CPU_AVX512VL,
    EK_CPU_AVX512VNNI,
    EK_CPU_AVX512VPOPCNTDQ,
    EK_CPU_AVXVNNI,
    EK_CPU_NEON,
    EK_CPU_DOTPROD,
    EK_CPU_FP16,
    EK_CPU_COUNT
};

#define EK_BIT(feature) (UINT64_C(1) << (feature))

enum { EK_FAMILY_XNOR, EK_FAMILY_DOT8, EK_FAMILY_COUNT };

/* The kernel of a family for an instruction set by name, or the nearest slower one that can run here; NULL name: the
 * fastest here. NULL where no instruction set is called so, or this CPU cannot run it. The result is what the family's
 * rows hold: const ek_xnor_kernel *, const ek_dot8_kernel *. */
const void *ek_find_kernel(int family, const char *name);

/* How the vector kernels of family "xnor" walk a layer's windows and weights; all distances in bytes. */
typedef struct {
    int32_t rows, runs, steps;
    int32_t passes;
    ek_pass pass[EK_MAX_PASSES];
    ptrdiff_t row, pixel, run; /* input: from row to row, pixel to pixel, run to run */
    ptrdiff_t plane;           /* input: from plane to plane */
    ptrdiff_t weight_plane;    /* weights of a block: from plane to plane */
    int32_t shift[EK_MAX_PASSES + 1];
    int started; /* no sum is doubled, so d may begin at the only level's limits */
} ek_xnor_walk;

extern const ek_xnor_kernel ek_xnor_reference, ek_xnor_portable, ek_xnor_avx2, ek_xnor_avx512, ek_xnor_neon;
extern const ek_dot8_kernel ek_dot8_reference, ek_dot8_portable, ek_dot8_avx2, ek_dot8_avx512, ek_dot8_neon,
    ek_dot8_neon_dotprod;

#endif
