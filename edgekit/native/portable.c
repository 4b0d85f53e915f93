/* Plain C for any CPU: a word's ones are counted in parallel inside the word. */
#include <string.h>

#include "kernels.h"

/* --- linear kernels: one pixel, a block of channels one after the other --------------------------------------- */

enum { EK_LANES = 1, EK_PIXELS = 1 };
#define EK_UNROLL
typedef int32_t ek_vec;

static inline ek_vec ek_vec_load(const int32_t *p) { return *p; }
static inline void ek_vec_store(int32_t *p, ek_vec v) { *p = v; }
static inline ek_vec ek_vec_add(ek_vec a, ek_vec b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
static inline ek_vec ek_vec_double(ek_vec v, int32_t n) { return (int32_t)((uint32_t)v << n); }
static inline ek_vec ek_vec_half(ek_vec v) { return v >> 1; }
static inline uint32_t ek_negative(ek_vec v) { return v < 0; }
static inline uint32_t ek_reached(ek_vec d, ek_vec limit) { return ~d < limit; }
typedef float ek_floats;
static inline ek_floats ek_floats_load(const float *p) { return *p; }
static inline void ek_store_scaled(float *to, ek_vec v, ek_floats scale, ek_floats bias) {
    const float product = (float)v * scale;
    *to = product + bias;
}

#include "window.inc"

/* --- family "xnor": weights straight from the plan (flash), the window's bits gathered once per pixel ---------- */

/* Warren, Hacker's Delight, 2nd edition, figure 5-2. */
static inline uint32_t ek_popcount32(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0fu;
    return v * 0x01010101u >> 24;
}

static size_t row_words(const ek_xnor_layer *l) {
    return ((size_t)l->layer.kernel_h * (size_t)l->layer.kernel_w * (size_t)l->in_c + 31) / 32;
}

/* Bits appended at a dense row's end, in the order of the weight rows. */
typedef struct {
    uint32_t *next;
    uint32_t held; /* the bits of the word that is not full yet */
    uint32_t count;
} bit_row;

static inline void append(bit_row *to, uint32_t bits, uint32_t count) {
    to->held |= bits << to->count;
    if (to->count + count < 32) {
        to->count += count;
        return;
    }
    *to->next++ = to->held;
    to->held = to->count == 0 ? 0 : bits >> (32 - to->count);
    to->count = to->count + count - 32;
}

static void gather(const ek_xnor_layer *l, const uint64_t *window, int32_t plane, uint32_t *row) {
    bit_row to = {row, 0, 0};
    for (int32_t ky = 0; ky < l->layer.kernel_h; ky++)
        for (int32_t kx = 0; kx < l->layer.kernel_w; kx++) {
            const uint64_t *from = window + ky * l->in_row + kx * l->in_pixel + plane * l->words;
            for (int32_t c = 0; c < l->in_c; c += 32) {
                const uint32_t bits = (uint32_t)(from[c / 64] >> (c % 64));
                append(&to, bits, l->in_c - c < 32 ? (uint32_t)(l->in_c - c) : 32);
            }
        }
    if (to.count != 0) *to.next = to.held;
}

static int32_t differing(const ek_xnor_layer *l, const uint32_t *gathered, const uint32_t *weights, size_t words) {
    uint32_t q = 0;
    for (int32_t i = 0; i < l->passes; i++) {
        const uint32_t *x = gathered + l->pass[i].in_plane * words, *w = weights + l->pass[i].weight_plane * words;
        uint32_t ones = 0;
        for (size_t k = 0; k < words; k++) ones += ek_popcount32(x[k] ^ w[k]);
        q += ones << l->pass[i].weight;
    }
    return (int32_t)q;
}

static void xnor_run(const ek_xnor_layer *l, void *scratch) {
    uint32_t *gathered = scratch;
    const size_t words = row_words(l), stride = words * (size_t)l->weight_planes;
    ek_cursor at = ek_first(&l->layer);
    while (at.y < l->layer.out_h) {
        const ek_pixel pixel = ek_next(&l->layer, l->in_row, l->in_pixel, &at);
        for (int32_t plane = 0; plane < l->in_planes; plane++)
            gather(l, l->in + pixel.in, plane, gathered + (size_t)plane * words);
        const uint32_t *weights = l->packed;
        for (int32_t first = 0; first < l->layer.out_c; first += EK_BLOCK) {
            ek_vec d[1][EK_VECTORS] = {{0}};
            for (int32_t c = 0; c < EK_BLOCK && first + c < l->layer.out_c; c++, weights += stride)
                d[0][c] = -differing(l, gathered, weights, words);
            ek_emit(&l->layer, &pixel, d, first, 0, 1, EK_VECTORS);
        }
    }
}

static size_t xnor_pack_size(const ek_xnor_layer *l) {
    (void)l;
    return 0;
}

static size_t xnor_scratch_size(const ek_xnor_layer *l) {
    return (row_words(l) * (size_t)l->in_planes * sizeof(uint32_t) + 63) / 64 * 64;
}

const ek_xnor_kernel ek_xnor_portable = {xnor_pack_size, NULL, xnor_scratch_size, xnor_run};

/* --- family "dot8" ---------------------------------------------------------------------------------------------- */

enum { EK_DOT8_PIXELS = 2, EK_DOT8_VECTORS = 4 };
#define EK_DOT8_OFFSET 0
typedef int32_t ek_dot8_acc;
typedef const int8_t *ek_dot8_weights;
typedef const uint8_t *ek_dot8_input;

static inline ek_dot8_acc ek_dot8_zero(void) { return 0; }
static inline ek_dot8_weights ek_dot8_load(const int8_t *p) { return p; }
static inline ek_dot8_input ek_dot8_spread(const uint8_t *p) { return p; }
static inline ek_dot8_acc ek_dot8_add(ek_dot8_acc acc, ek_dot8_weights w, ek_dot8_input x) {
    return acc + x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
}
static inline ek_vec ek_dot8_total(ek_dot8_acc acc) { return acc; }

#define EK_DOT8_KERNEL ek_dot8_portable
#include "dot8_kernel.inc"
