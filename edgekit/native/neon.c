/* NEON, 64-bit and 32-bit ARM: two words counted byte by byte, the counts widened pairwise. */
#include <arm_neon.h>

#include "kernels.h"

enum { EK_WORDS = 2 };
typedef uint32x4_t ek_acc;

static inline ek_acc ek_zero(void) { return vdupq_n_u32(0); }

static inline ek_acc ek_add(ek_acc acc, const uint64_t *x, const uint64_t *w) {
    const uint8x16_t bits = veorq_u8(vld1q_u8((const uint8_t *)x), vld1q_u8((const uint8_t *)w));
    return vpadalq_u16(acc, vpaddlq_u8(vcntq_u8(bits)));
}

static inline uint32_t ek_total(ek_acc acc) {
    const uint64x2_t pairs = vpaddlq_u32(acc);
    return (uint32_t)(vgetq_lane_u64(pairs, 0) + vgetq_lane_u64(pairs, 1));
}

static inline uint32_t ek_popcount(uint64_t v) {
    return (uint32_t)vget_lane_u64(vpaddl_u32(vpaddl_u16(vpaddl_u8(vcnt_u8(vcreate_u8(v))))), 0);
}

#define EK_KERNEL ek_bdense_neon
#include "bdense_kernel.inc"
