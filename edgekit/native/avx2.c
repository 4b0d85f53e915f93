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
