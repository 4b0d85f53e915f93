/* Inside the library: the CPU's feature bits and the kernels of each family. */
#ifndef EDGEKIT_KERNELS_H
#define EDGEKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

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

/* Sums of `rows` rows of n values; arguments are checked by ek_binary_dense. */
typedef void ek_bdense_kernel(const uint64_t *x, const uint64_t *w, int32_t *out, size_t rows, size_t n);

ek_bdense_kernel ek_bdense_reference;
ek_bdense_kernel ek_bdense_portable;
ek_bdense_kernel ek_bdense_avx2;
ek_bdense_kernel ek_bdense_avx512;
ek_bdense_kernel ek_bdense_neon;

#endif
