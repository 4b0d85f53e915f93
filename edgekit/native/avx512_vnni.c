/* AVX-512 with VNNI: sixteen sums of four products of bytes by one instruction. A file of its own, because a CPU may
 * have VPOPCNTDQ without VNNI. */
#include <immintrin.h>

#include "kernels.h"

#include "avx512_vectors.inc"

enum { EK_DOT8_PIXELS = 6, EK_DOT8_VECTORS = 4 };
#define EK_DOT8_OFFSET 0
typedef __m512i ek_dot8_acc;
typedef __m512i ek_dot8_weights;
typedef __m512i ek_dot8_input;

static inline ek_dot8_acc ek_dot8_zero(void) { return _mm512_setzero_si512(); }
static inline ek_dot8_weights ek_dot8_load(const int8_t *p) { return _mm512_loadu_si512(p); }
static inline ek_dot8_input ek_dot8_spread(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline ek_dot8_acc ek_dot8_add(ek_dot8_acc acc, ek_dot8_weights w, ek_dot8_input x) {
    return _mm512_dpbusd_epi32(acc, x, w);
}
static inline ek_vec ek_dot8_total(ek_dot8_acc acc) { return acc; }

#define EK_DOT8_HAS_REACHED
static inline __mmask64 ek_dot8_reached(const ek_vec *d, const int32_t *limits) {
    const __m512i ones = _mm512_set1_epi32(-1);
    __mmask16 found[4];
    _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)
        found[v] = _mm512_cmplt_epi32_mask(_mm512_xor_si512(d[v], ones), _mm512_loadu_si512(limits + v * 16));
    return _mm512_kunpackd(_mm512_kunpackw(found[3], found[2]), _mm512_kunpackw(found[1], found[0]));
}

#define EK_DOT8_KERNEL ek_dot8_avx512
#include "dot8_kernel.inc"
