/* NEON, 64-bit and 32-bit ARM: ones counted byte by byte, the counts widened pairwise. */
#include <arm_neon.h>

#include "kernels.h"

#include "neon_vectors.inc"

/* --- family "xnor": two bytes of 8 channels against two of a pixel, counted in bytes, then in 16 and 32 bits ---- */

enum {
    EK_XNOR_STEP = 2,
    EK_XNOR_PART = 2,
#ifdef __aarch64__
    EK_XNOR_AT_ONCE = 8, /* vectors of 8 channels whose counters stay in registers, for each pixel */
#else
    EK_XNOR_AT_ONCE = 4,
#endif
    EK_XNOR_STEPS = 255 / 8,                       /* that counters of 8 bits last */
    EK_XNOR_ROUNDS = 65535 / (EK_XNOR_STEPS * 16), /* of so many steps, that those of 16 bits last */
};

typedef uint16x8_t ek_xnor_counts[EK_PIXELS][EK_XNOR_AT_ONCE];

static inline size_t ek_xnor_slot(int32_t channel) { return (size_t)channel; }

EK_INLINE void ek_xnor_clear(ek_xnor_counts counts, const int P, const int B) {
    EK_UNROLL for (int p = 0; p < P; p++) EK_UNROLL for (int b = 0; b < B; b++) counts[p][b] = vdupq_n_u16(0);
}

/* At most EK_XNOR_STEPS steps. */
EK_INLINE void ek_xnor_count(ek_xnor_counts counts, const uint8_t *const *in, ptrdiff_t at, const uint8_t *weights,
                             int32_t steps, const int P, const int B) {
    uint8x16_t ones[EK_PIXELS][EK_XNOR_AT_ONCE];
    EK_UNROLL for (int p = 0; p < P; p++) EK_UNROLL for (int b = 0; b < B; b++) ones[p][b] = vdupq_n_u8(0);
    const uint16_t *next[EK_PIXELS];
    EK_UNROLL for (int p = 0; p < P; p++) next[p] = (const uint16_t *)(const void *)(in[p] + at);
    for (const uint16_t *end = next[0] + steps; next[0] < end; weights += EK_BLOCK * EK_XNOR_STEP) {
        uint8x16_t x[EK_PIXELS];
        EK_UNROLL for (int p = 0; p < P; p++) x[p] = vreinterpretq_u8_u16(vld1q_dup_u16(next[p]++));
        EK_UNROLL for (int b = 0; b < B; b++) {
            const uint8x16_t w = vld1q_u8(weights + b * 16);
            EK_UNROLL for (int p = 0; p < P; p++) ones[p][b] = vaddq_u8(ones[p][b], vcntq_u8(veorq_u8(w, x[p])));
        }
    }
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int b = 0; b < B; b++) counts[p][b] = vpadalq_u8(counts[p][b], ones[p][b]);
}

EK_INLINE int32x4_t ek_xnor_less(int32x4_t d, uint16x4_t counts) {
    return vreinterpretq_s32_u32(vsubw_u16(vreinterpretq_u32_s32(d), counts));
}

EK_INLINE void ek_xnor_take(ek_vec (*d)[EK_VECTORS], ek_xnor_counts counts, const int first, const int P, const int B) {
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int b = 0; b < B; b++) {
            ek_vec *to = &d[p][first + 2 * b];
            to[0] = ek_xnor_less(to[0], vget_low_u16(counts[p][b]));
            to[1] = ek_xnor_less(to[1], vget_high_u16(counts[p][b]));
        }
}

/* One pass over B vectors of weights, whose sums are d[p][first] and those behind it. */
EK_INLINE void ek_xnor_pass(ek_vec (*d)[EK_VECTORS], const int first, const uint8_t *const *in, ptrdiff_t plane,
                            const uint8_t *weights, const ek_xnor_walk *walk, const int P, const int B) {
    ek_xnor_counts counts;
    int32_t rounds = 0;
    ek_xnor_clear(counts, P, B);
    for (int32_t row = 0; row < walk->rows; row++)
        for (int32_t run = 0; run < walk->runs; run++) {
            ptrdiff_t at = plane + row * walk->row + run * walk->run;
            for (int32_t left = walk->steps; left > 0; left -= EK_XNOR_STEPS, at += EK_XNOR_STEPS * EK_XNOR_STEP) {
                const int32_t steps = left < EK_XNOR_STEPS ? left : EK_XNOR_STEPS;
                if (rounds++ == EK_XNOR_ROUNDS) {
                    ek_xnor_take(d, counts, first, P, B);
                    ek_xnor_clear(counts, P, B);
                    rounds = 1;
                }
                ek_xnor_count(counts, in, at, weights, steps, P, B);
                weights += steps * EK_BLOCK * EK_XNOR_STEP;
            }
        }
    ek_xnor_take(d, counts, first, P, B);
}

EK_INLINE void ek_xnor_double(ek_vec (*d)[EK_VECTORS], int32_t shift, const int P, const int V) {
    if (shift == 0) return;
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int v = 0; v < V; v++) d[p][v] = ek_vec_double(d[p][v], shift);
}

EK_INLINE void ek_xnor_tile(ek_vec (*d)[EK_VECTORS], const uint8_t *const *in, const uint8_t *weights,
                            const ek_xnor_walk *walk, const int P, const int V) {
    const int B = V / 2 < EK_XNOR_AT_ONCE ? V / 2 : EK_XNOR_AT_ONCE;
    for (int32_t i = 0; i < walk->passes; i++) {
        const uint8_t *w = weights + walk->pass[i].weight_plane * walk->weight_plane;
        const ptrdiff_t plane = walk->pass[i].in_plane * walk->plane;
        ek_xnor_double(d, walk->shift[i], P, V);
        EK_UNROLL for (int v = 0; v < V; v += 2 * B) ek_xnor_pass(d, v, in, plane, w + v * 8, walk, P, B);
    }
    ek_xnor_double(d, walk->shift[walk->passes], P, V);
}

#define EK_XNOR_KERNEL ek_xnor_neon
#include "xnor_kernel.inc"

/* --- family "dot8": inputs less 128, so that both factors are int8 ----------------------------------------------- */

#ifdef __aarch64__
enum { EK_DOT8_PIXELS = 2, EK_DOT8_VECTORS = 4 };
#else
enum { EK_DOT8_PIXELS = 2, EK_DOT8_VECTORS = 2 };
#endif
#define EK_DOT8_OFFSET 128
typedef struct {
    int32x4_t of[2]; /* two channels each: sums of terms 0 and 1, and of 2 and 3, of one, then of the other */
} ek_dot8_acc;
typedef int8x16_t ek_dot8_weights;
typedef int8x8_t ek_dot8_input;

static inline ek_dot8_acc ek_dot8_zero(void) { return (ek_dot8_acc){{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
static inline ek_dot8_weights ek_dot8_load(const int8_t *p) { return vld1q_s8(p); }
static inline ek_dot8_input ek_dot8_spread(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpret_s8_u32(vdup_n_u32(four ^ 0x80808080u));
}
static inline ek_dot8_acc ek_dot8_add(ek_dot8_acc acc, ek_dot8_weights w, ek_dot8_input x) {
    acc.of[0] = vpadalq_s16(acc.of[0], vmull_s8(vget_low_s8(w), x));
    acc.of[1] = vpadalq_s16(acc.of[1], vmull_s8(vget_high_s8(w), x));
    return acc;
}
static inline ek_vec ek_dot8_total(ek_dot8_acc acc) {
    return vcombine_s32(vpadd_s32(vget_low_s32(acc.of[0]), vget_high_s32(acc.of[0])),
                        vpadd_s32(vget_low_s32(acc.of[1]), vget_high_s32(acc.of[1])));
}

#define EK_DOT8_KERNEL ek_dot8_neon
#include "dot8_kernel.inc"
