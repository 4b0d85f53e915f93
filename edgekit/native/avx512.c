/* AVX-512 with VPOPCNTDQ: eight words counted by one instruction. */
#include <immintrin.h>

#include "kernels.h"

static inline uint32_t ek_popcount(uint64_t v) { return (uint32_t)__builtin_popcountll(v); }

enum { EK_WORDS = 8 };
typedef __m512i ek_acc;

static inline ek_acc ek_zero(void) { return _mm512_setzero_si512(); }

static inline ek_acc ek_add(ek_acc acc, const uint64_t *x, const uint64_t *w) {
    const __m512i bits = _mm512_xor_si512(_mm512_loadu_si512(x), _mm512_loadu_si512(w));
    return _mm512_add_epi64(acc, _mm512_popcnt_epi64(bits));
}

static inline uint32_t ek_total(ek_acc acc) { return (uint32_t)_mm512_reduce_add_epi64(acc); }

#define EK_KERNEL ek_bdense_avx512
#include "bdense_kernel.inc"
