/* Windows without weights: the largest or smallest code, and sums of values. */
#include <string.h>

#include "executor.h"

/* --- bits: 64 channels at a time --------------------------------------------------------------------------------- */

typedef struct {
    const ek_buffer *in;
    const ek_plan_window *of;
    const unsigned char *smallest; /* NULL: the largest everywhere */
} window;

static uint64_t mask_word(const window *w, int32_t word) {
    uint64_t mask = 0;
    if (w->smallest == NULL) return 0;
    const int32_t bytes = (w->in->c + 7) / 8 - word * 8;
    memcpy(&mask, w->smallest + (size_t)word * 8, bytes < 8 ? (size_t)bytes : 8);
    return mask;
}

/* Codes whose order is that of each of their bits: the largest is OR, the smallest AND. */
static void pool_ordered(const window *w, int32_t y, int32_t x, uint64_t *to) {
    const ek_buffer *in = w->in;
    const int32_t words = in->words * in->planes;
    const ptrdiff_t row = (ptrdiff_t)(in->row / 8), pixel = (ptrdiff_t)(in->pixel / 8);
    const uint64_t *corner = ek_words_at(in, y, x);
    for (int32_t i = 0; i < words; i++) {
        uint64_t any = 0, all = UINT64_MAX;
        for (int32_t ky = 0; ky < w->of->kernel_h; ky++)
            for (int32_t kx = 0; kx < w->of->kernel_w; kx++) {
                const uint64_t word = corner[ky * row + kx * pixel + i];
                any |= word;
                all &= word;
            }
        const uint64_t mask = mask_word(w, i % in->words);
        to[i] = (any & ~mask) | (all & mask);
    }
}

/* The most common window, and all channels by their largest. */
static void pool_2x2(const window *w, int32_t y, int32_t x, uint64_t *to) {
    const int32_t words = w->in->words * w->in->planes;
    const uint64_t *upper = ek_words_at(w->in, y, x), *lower = ek_words_at(w->in, y + 1, x);
    for (int32_t i = 0; i < words; i++) to[i] = upper[i] | upper[words + i] | lower[i] | lower[words + i];
}

/* Codes of two bits, compared as numbers. */
static void pool_numbers(const window *w, int32_t y, int32_t x, uint64_t *to) {
    const ek_buffer *in = w->in;
    for (int32_t i = 0; i < in->words; i++) {
        const uint64_t mask = mask_word(w, i), *first = ek_words_at(in, y, x);
        uint64_t low = first[i], high = first[in->words + i];
        for (int32_t ky = 0; ky < w->of->kernel_h; ky++)
            for (int32_t kx = 0; kx < w->of->kernel_w; kx++) {
                const uint64_t *next = ek_words_at(in, y + ky, x + kx);
                const uint64_t b0 = next[i], b1 = next[in->words + i];
                const uint64_t larger = (b1 & ~high) | (~(b1 ^ high) & b0 & ~low), take = larger ^ mask;
                low = (b0 & take) | (low & ~take);
                high = (b1 & take) | (high & ~take);
            }
        to[i] = low;
        to[in->words + i] = high;
    }
}

/* --- bytes and numbers ------------------------------------------------------------------------------------------- */

static bool takes_smallest(const window *w, int32_t c) {
    return w->smallest != NULL && (w->smallest[c / 8] >> c % 8 & 1) != 0;
}

/* Bytes of I8 are held in the order of U8. */
static void pool_bytes(const window *w, int32_t y, int32_t x, unsigned char *to) {
    const int32_t c = w->in->c;
    memcpy(to, ek_pixel_at(w->in, y, x), (size_t)c);
    for (int32_t ky = 0; ky < w->of->kernel_h; ky++)
        for (int32_t kx = 0; kx < w->of->kernel_w; kx++) {
            const unsigned char *next = ek_pixel_at(w->in, y + ky, x + kx);
            if (w->smallest == NULL)
                for (int32_t i = 0; i < c; i++) to[i] = next[i] > to[i] ? next[i] : to[i];
            else
                for (int32_t i = 0; i < c; i++)
                    if (takes_smallest(w, i) ? next[i] < to[i] : next[i] > to[i]) to[i] = next[i];
        }
}

static void pool_integers(const window *w, int32_t y, int32_t x, int32_t *to) {
    const int32_t c = w->in->c;
    memcpy(to, ek_pixel_at(w->in, y, x), (size_t)c * 4);
    for (int32_t ky = 0; ky < w->of->kernel_h; ky++)
        for (int32_t kx = 0; kx < w->of->kernel_w; kx++) {
            const int32_t *next = (const void *)ek_pixel_at(w->in, y + ky, x + kx);
            for (int32_t i = 0; i < c; i++)
                if (takes_smallest(w, i) ? next[i] < to[i] : next[i] > to[i]) to[i] = next[i];
        }
}

/* A NaN in the window is the result. */
static void pool_floats(const window *w, int32_t y, int32_t x, float *to) {
    const int32_t c = w->in->c;
    memcpy(to, ek_pixel_at(w->in, y, x), (size_t)c * 4);
    for (int32_t ky = 0; ky < w->of->kernel_h; ky++)
        for (int32_t kx = 0; kx < w->of->kernel_w; kx++) {
            const float *next = (const void *)ek_pixel_at(w->in, y + ky, x + kx);
            for (int32_t i = 0; i < c; i++)
                if (next[i] != next[i] || (takes_smallest(w, i) ? next[i] < to[i] : next[i] > to[i])) to[i] = next[i];
        }
    for (int32_t i = 0; i < c; i++) to[i] = ek_one_nan(to[i]);
}

void ek_run_pool(const ek_plan_window *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out) {
    const window w = {in, of, ek_span_at(plan, of->smallest)};
    const bool ordered = in->coding == EK_BIPOLAR || in->coding == EK_TERNARY;
    const bool common = of->kernel_h == 2 && of->kernel_w == 2 && w.smallest == NULL;
    for (int32_t y = 0; y < out->h; y++)
        for (int32_t x = 0; x < out->w; x++) {
            const int32_t from_y = y * of->stride_h, from_x = x * of->stride_w;
            void *to = ek_pixel_at(out, y, x);
            switch (in->type) {
                case EK_BITS:
                    if (ordered && common) pool_2x2(&w, from_y, from_x, to);
                    else if (ordered) pool_ordered(&w, from_y, from_x, to);
                    else pool_numbers(&w, from_y, from_x, to);
                    break;
                case EK_I32: pool_integers(&w, from_y, from_x, to); break;
                case EK_F32: pool_floats(&w, from_y, from_x, to); break;
                default: pool_bytes(&w, from_y, from_x, to); break;
            }
        }
}

/* --- sums -------------------------------------------------------------------------------------------------------- */

/* Sums of I32 wrap as two's complement does. */
void ek_run_sum(const ek_plan_window *of, const ek_buffer *in, const ek_buffer *out) {
    int32_t values[EK_CHUNK];
    for (int32_t y = 0; y < out->h; y++)
        for (int32_t x = 0; x < out->w; x++)
            for (int32_t c = 0; c < in->c; c += EK_CHUNK) {
                const int32_t n = in->c - c < EK_CHUNK ? in->c - c : EK_CHUNK;
                uint32_t *to = (uint32_t *)(void *)ek_pixel_at(out, y, x) + c;
                memset(to, 0, (size_t)n * 4);
                for (int32_t ky = 0; ky < of->kernel_h; ky++)
                    for (int32_t kx = 0; kx < of->kernel_w; kx++) {
                        ek_load_values(in, ek_pixel_at(in, y * of->stride_h + ky, x * of->stride_w + kx), c, n, values);
                        for (int32_t i = 0; i < n; i++) to[i] += (uint32_t)values[i];
                    }
            }
}
