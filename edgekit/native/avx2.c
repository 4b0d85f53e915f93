/* AVX2: ones counted by a table of the sixteen half-bytes (Mula, Kurz, Lemire 2018, "Faster population counts"). */
#include <immintrin.h>

#include "kernels.h"

static inline uint32_t ek_popcount(uint64_t v) { return (uint32_t)__builtin_popcountll(v); }

enum { EK_WORDS = 4 };
typedef __m256i ek_acc;

static inline ek_acc ek_zero(void) { return _mm256_setzero_si256(); }

static inline ek_acc ek_add(ek_acc acc, const uint64_t *x, const uint64_t *w) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1,
                                           2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(0x0f);
    const __m256i bits =
        _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)x), _mm256_loadu_si256((const __m256i *)w));
    const __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(bits, low)),
                                         _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bits, 4), low)));
    return _mm256_add_epi64(acc, _mm256_sad_epu8(ones, _mm256_setzero_si256()));
}

static inline uint32_t ek_total(ek_acc acc) {
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, acc);
    return (uint32_t)(lanes[0] + lanes[1] + lanes[2] + lanes[3]);
}

#define EK_KERNEL ek_bdense_avx2
#include "bdense_kernel.inc"

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
static inline void ek_store_scaled(float *to, ek_vec v, const float *scale, const float *bias) {
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_loadu_ps(scale));
    _mm256_storeu_ps(to, _mm256_add_ps(product, _mm256_loadu_ps(bias)));
}

#include "window.inc"

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
