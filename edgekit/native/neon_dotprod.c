/* NEON with the dot product (ARMv8.2): four sums of four products of bytes by one instruction. */
#include <arm_neon.h>

#include "kernels.h"

#include "neon_vectors.inc"

/* Inputs less 128, since the instruction takes two signed factors or two unsigned ones. */
enum { EK_DOT8_PIXELS = 2, EK_DOT8_VECTORS = 8 };
#define EK_DOT8_OFFSET 128
typedef int32x4_t ek_dot8_acc;
typedef int8x16_t ek_dot8_weights;
typedef int8x16_t ek_dot8_input;

static inline ek_dot8_acc ek_dot8_zero(void) { return vdupq_n_s32(0); }
static inline ek_dot8_weights ek_dot8_load(const int8_t *p) { return vld1q_s8(p); }
static inline ek_dot8_input ek_dot8_spread(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
}
static inline ek_dot8_acc ek_dot8_add(ek_dot8_acc acc, ek_dot8_weights w, ek_dot8_input x) {
    return vdotq_s32(acc, w, x);
}
static inline ek_vec ek_dot8_total(ek_dot8_acc acc) { return acc; }

#define EK_DOT8_KERNEL ek_dot8_neon_dotprod
#include "dot8_kernel.inc"
