/* AVX-512 with VPOPCNTDQ: sixteen words of 32 bits counted by one instruction. */
#include <immintrin.h>

#include "kernels.h"

#include "avx512_vectors.inc"

/* --- family "xnor": 32 bits of 16 channels against 32 bits of a pixel; 24 sums stay in registers ----------------- */

enum { EK_XNOR_STEP = 4, EK_XNOR_PART = 1, EK_XNOR_AHEAD = 2048 /* bytes */ };

#define EK_XNOR_TWICE _Pragma("GCC unroll 2")

static inline size_t ek_xnor_slot(int32_t channel) { return (size_t)channel; }

EK_INLINE void ek_xnor_double(ek_vec (*d)[EK_VECTORS], int32_t shift, const int P, const int V) {
    if (shift == 0) return;
    EK_UNROLL for (int p = 0; p < P; p++)
        EK_UNROLL for (int v = 0; v < V; v++) d[p][v] = ek_vec_double(d[p][v], shift);
}

EK_INLINE void ek_xnor_tile(ek_vec (*d)[EK_VECTORS], const uint8_t *const *in, const uint8_t *weights,
                            const ek_xnor_walk *walk, const int P, const int V) {
    for (int32_t i = 0; i < walk->passes; i++) {
        ek_xnor_double(d, walk->shift[i], P, V);
        const uint8_t *w = weights + walk->pass[i].weight_plane * walk->weight_plane;
        for (int32_t row = 0; row < walk->rows; row++)
            for (int32_t run = 0; run < walk->runs; run++) {
                ptrdiff_t at = walk->pass[i].in_plane * walk->plane + row * walk->row + run * walk->run;
                EK_XNOR_TWICE for (int32_t step = 0; step < walk->steps; step++) {
                    ek_vec x[EK_PIXELS];
                    EK_UNROLL for (int p = 0; p < P; p++) {
                        int32_t bits;
                        memcpy(&bits, in[p] + at, sizeof bits);
                        x[p] = _mm512_set1_epi32(bits);
                    }
                    EK_UNROLL for (int v = 0; v < V; v++) {
                        const ek_vec of = _mm512_loadu_si512(w + v * 64);
                        EK_UNROLL for (int p = 0; p < P; p++)
                            d[p][v] = _mm512_sub_epi32(d[p][v], _mm512_popcnt_epi32(_mm512_xor_si512(of, x[p])));
                        /* A dense layer meets each weight once: the next ones come from farther than the L2 cache. */
                        if (P == 1) _mm_prefetch((const char *)w + v * 64 + EK_XNOR_AHEAD, _MM_HINT_T0);
                    }
                    at += EK_XNOR_STEP;
                    w += EK_BLOCK * EK_XNOR_STEP;
                }
            }
    }
    ek_xnor_double(d, walk->shift[walk->passes], P, V);
}

#define EK_XNOR_KERNEL ek_xnor_avx512
#include "xnor_kernel.inc"
