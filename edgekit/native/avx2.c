/* AVX2: ones looked up by half-bytes (Mula, Kurz, Lemire 2018, "Faster population counts"). */
#include <immintrin.h>

#include "kernels.h"

/* --- linear layers: lanes are output channels ------------------------------------------------------------------- */

enum { EK_LANES = 8, EK_PIXELS = 4 };
#define EK_UNROLL _Pragma("GCC unroll 8")
typedef __m256i ek_vec;

static inline ek_vec ek_vec_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
static inline void ek_vec_store(int32_t *p, ek_vec v) { _mm256_storeu_si256((__m256i *)(void *)p, v); }
static inline ek_vec ek_vec_add(ek_vec a, ek_vec b) { return _mm256_add_epi32(a, b); }
static inline ek_vec ek_vec_double(ek_vec v, int32_t n) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(n)); }
static inline ek_vec ek_vec_half(ek_vec v) { return _mm256_srai_epi32(v, 1); }
static inline uint32_t ek_negative(ek_vec v) { return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(v)); }
static inline uint32_t ek_reached(ek_vec d, ek_vec limit) {
    return ek_negative(_mm256_cmpgt_epi32(limit, _mm256_xor_si256(d, _mm256_set1_epi32(-1))));
}
#define EK_HAS_NEGATIVE_BLOCK
/* Narrowing keeps the sign; it works on halves, so half h of vector v comes out as the four bytes from 16 h + 4 v on. */
static inline uint64_t ek_negative_half_block(const ek_vec *d) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(d[0], d[1]), _mm256_packs_epi32(d[2], d[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order));
}
static inline uint64_t ek_negative_block(const ek_vec *d) {
    return ek_negative_half_block(d) | ek_negative_half_block(d + 4) << 32;
}
typedef __m256 ek_floats;
static inline ek_floats ek_floats_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void ek_store_scaled(float *to, ek_vec v, ek_floats scale, ek_floats bias) {
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(v), scale), bias));
}

#include "window.inc"

/* --- family "xnor": the weights' half-bytes look up their differing bits in the pixel's table ----------------------
 *
 * A step is one byte of a pixel against one byte of each of 32 channels. Row b of the table holds popcount(i xor low
 * half of b) for i below 16, then the same of the high half. Counts go through three widths: bytes for a segment of up
 * to 31 steps, 16 bits for up to 256 segments, then d. Even and odd bytes part on the way, hence ek_xnor_slot.
 */

enum { EK_XNOR_STEP = 1, EK_XNOR_PART = 4, EK_XNOR_MOST_STEPS = 31, EK_XNOR_SEGMENTS = 256 };

#define ONES(x) (((x) & 1) + ((x) >> 1 & 1) + ((x) >> 2 & 1) + ((x) >> 3 & 1))
#define FOUR(h, i) ONES((h) ^ (i)), ONES((h) ^ ((i) + 1)), ONES((h) ^ ((i) + 2)), ONES((h) ^ ((i) + 3))
#define HALF(h) FOUR(h, 0), FOUR(h, 4), FOUR(h, 8), FOUR(h, 12)
#define ROW(b) {HALF((b) & 15), HALF((b) >> 4)}
#define ROWS4(b) ROW(b), ROW((b) + 1), ROW((b) + 2), ROW((b) + 3)
#define ROWS16(b) ROWS4(b), ROWS4((b) + 4), ROWS4((b) + 8), ROWS4((b) + 12)
#define ROWS64(b) ROWS16(b), ROWS16((b) + 16), ROWS16((b) + 32), ROWS16((b) + 48)
static const uint8_t ek_xnor_table[256][32] __attribute__((aligned(64))) = {ROWS64(0), ROWS64(64), ROWS64(128),
                                                                            ROWS64(192)};

static inline size_t ek_xnor_slot(int32_t channel) {
    return (size_t)(channel / 32 * 32 + channel % 8 * 4 + channel / 8 % 4);
}

/* The value stays in its register, and the compiler takes no other order of the sums that would need more of them. */
#define EK_KEEP(v) __asm__("" : "+x"(v))

/* Counts of P pixels times 32 H channels in 16 bits: those of even and of odd bytes. */
typedef struct {
    __m256i even[EK_PIXELS][2], odd[EK_PIXELS][2];
} ek_xnor_counts;

/* Up to eight steps; x: each pixel's bytes, the next one lowest. */
EK_INLINE void ek_xnor_word(__m256i (*bytes)[2], uint64_t *x, const uint8_t *weights, int32_t steps, const int P,
                            const int H) {
    const __m256i low = _mm256_set1_epi8(0x0f);
    const uint8_t *end = weights + steps * EK_BLOCK;
    for (; weights != end; weights += EK_BLOCK) {
        __m256i w[2][2];
        EK_UNROLL for (int h = 0; h < H; h++) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)(weights + 32 * h));
            EK_KEEP(both);
            w[h][0] = _mm256_and_si256(both, low);
            w[h][1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
        EK_UNROLL for (int p = 0; p < P; p++) {
            const __m128i *row = (const __m128i *)(const void *)ek_xnor_table[(uint8_t)x[p]];
            x[p] >>= 8;
            EK_UNROLL for (int half = 0; half < 2; half++) {
                const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(row + half));
                EK_UNROLL for (int h = 0; h < H; h++) {
                    bytes[p][h] = _mm256_add_epi8(bytes[p][h], _mm256_shuffle_epi8(table, w[h][half]));
                    EK_KEEP(bytes[p][h]);
                }
            }
        }
    }
}

/* `runs` runs of `steps` steps each, EK_XNOR_MOST_STEPS together at the most. */
EK_INLINE void ek_xnor_segment(ek_xnor_counts *to, const uint8_t *const *in, ptrdiff_t at, ptrdiff_t run,
                               const uint8_t *weights, int32_t runs, int32_t steps, const int P, const int H) {
    __m256i bytes[EK_PIXELS][2];
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int h = 0; h < H; h++) bytes[p][h] = _mm256_setzero_si256();
    for (int32_t r = 0; r < runs; r++, at += run)
        for (int32_t done = 0; done < steps; done += 8) {
            uint64_t x[EK_PIXELS]; /* inputs are whole words */
            EK_UNROLL for (int p = 0; p < P; p++) memcpy(&x[p], in[p] + at + done, sizeof x[p]);
            const int32_t count = steps - done < 8 ? steps - done : 8;
            ek_xnor_word(bytes, x, weights, count, P, H);
            weights += count * EK_BLOCK;
        }
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int h = 0; h < H; h++) {
            const __m256i even = _mm256_and_si256(bytes[p][h], _mm256_set1_epi16(0xff));
            to->even[p][h] = _mm256_add_epi16(to->even[p][h], even);
            to->odd[p][h] = _mm256_add_epi16(to->odd[p][h], _mm256_srli_epi16(bytes[p][h], 8));
        }
}

/* Take the counts from d and begin anew. */
EK_INLINE void ek_xnor_take(ek_vec (*d)[EK_VECTORS], ek_xnor_counts *of, const int P, const int H) {
    const __m256i low = _mm256_set1_epi32(0xffff), zero = _mm256_setzero_si256();
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int h = 0; h < H; h++) {
            const __m256i even = of->even[p][h], odd = of->odd[p][h];
            ek_vec *to = &d[p][4 * h];
            to[0] = _mm256_sub_epi32(to[0], _mm256_and_si256(even, low));
            to[1] = _mm256_sub_epi32(to[1], _mm256_and_si256(odd, low));
            to[2] = _mm256_sub_epi32(to[2], _mm256_srli_epi32(even, 16));
            to[3] = _mm256_sub_epi32(to[3], _mm256_srli_epi32(odd, 16));
            of->even[p][h] = of->odd[p][h] = zero;
        }
}

EK_INLINE void ek_xnor_double(ek_vec (*d)[EK_VECTORS], int32_t shift, const int P, const int V) {
    if (shift == 0) return;
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int v = 0; v < V; v++) d[p][v] = ek_vec_double(d[p][v], shift);
}

EK_INLINE void ek_xnor_tile(ek_vec (*d)[EK_VECTORS], const uint8_t *const *in, const uint8_t *weights,
                            const ek_xnor_walk *walk, const int P, const int V) {
    const int H = V / 4;
    /* Whole words of input where a run is longer than a segment; several runs where they are short. */
    const int32_t steps = walk->steps < EK_XNOR_MOST_STEPS ? walk->steps : EK_XNOR_MOST_STEPS / 8 * 8;
    const int32_t together = walk->runs < EK_XNOR_MOST_STEPS / steps ? walk->runs : EK_XNOR_MOST_STEPS / steps;
    ek_xnor_counts counts;
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int h = 0; h < H; h++) counts.even[p][h] = counts.odd[p][h] = _mm256_setzero_si256();
    for (int32_t i = 0; i < walk->passes; i++) {
        int32_t segments = 0;
        ek_xnor_double(d, walk->shift[i], P, V);
        const uint8_t *w = weights + walk->pass[i].weight_plane * walk->weight_plane;
        for (int32_t row = 0; row < walk->rows; row++)
            for (int32_t run = 0, runs; run < walk->runs; run += runs) {
                const ptrdiff_t at = walk->pass[i].in_plane * walk->plane + row * walk->row + run * walk->run;
                runs = walk->runs - run < together ? walk->runs - run : together;
                for (int32_t done = 0, count; done < walk->steps; done += count) {
                    count = walk->steps - done < steps ? walk->steps - done : steps;
                    ek_xnor_segment(&counts, in, at + done, walk->run, w, runs, count, P, H);
                    w += runs * count * EK_BLOCK;
                    if (++segments % EK_XNOR_SEGMENTS == 0) ek_xnor_take(d, &counts, P, H);
                }
            }
        ek_xnor_take(d, &counts, P, H);
    }
    ek_xnor_double(d, walk->shift[walk->passes], P, V);
}

#define EK_XNOR_KERNEL ek_xnor_avx2
#include "xnor_kernel.inc"

/* --- family "dot8": in 16 bits, since vpmaddubsw saturates where two products exceed them ------------------------- */

enum { EK_DOT8_PIXELS = 2, EK_DOT8_VECTORS = 4 };
#define EK_DOT8_OFFSET 0
typedef __m256i ek_dot8_acc;
typedef struct {
    __m256i even, odd; /* bytes 0 and 2, bytes 1 and 3 of every lane, in 16 bits each */
} ek_dot8_weights;
typedef ek_dot8_weights ek_dot8_input;

static inline ek_dot8_acc ek_dot8_zero(void) { return _mm256_setzero_si256(); }
static inline ek_dot8_weights ek_dot8_load(const int8_t *p) {
    const __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return (ek_dot8_weights){_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
}
static inline ek_dot8_input ek_dot8_spread(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    const __m256i x = _mm256_set1_epi32(four);
    return (ek_dot8_input){_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)};
}
static inline ek_dot8_acc ek_dot8_add(ek_dot8_acc acc, ek_dot8_weights w, ek_dot8_input x) {
    const __m256i even = _mm256_madd_epi16(w.even, x.even), odd = _mm256_madd_epi16(w.odd, x.odd);
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
static inline ek_vec ek_dot8_total(ek_dot8_acc acc) { return acc; }

#define EK_DOT8_KERNEL ek_dot8_avx2
#include "dot8_kernel.inc"
