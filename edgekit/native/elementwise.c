/* Operators that take each value by itself, EK_CHUNK channels of a pixel at a time. */
#include <string.h>

#include "executor.h"

static int32_t chunk_at(const ek_buffer *b, int32_t c) { return b->c - c < EK_CHUNK ? b->c - c : EK_CHUNK; }

#define EACH_CHUNK(out)                         \
    for (int32_t y = 0; y < (out)->h; y++)      \
        for (int32_t x = 0; x < (out)->w; x++)  \
            for (int32_t c = 0; c < (out)->c; c += EK_CHUNK)

static float *floats_at(const ek_buffer *b, int32_t y, int32_t x, int32_t c) {
    return (float *)(void *)ek_pixel_at(b, y, x) + c;
}

static int32_t *integers_at(const ek_buffer *b, int32_t y, int32_t x, int32_t c) {
    return (int32_t *)(void *)ek_pixel_at(b, y, x) + c;
}

/* What is added to a value of U8 or I8 where it is held. */
static int32_t held_offset(const ek_buffer *b) { return b->type == EK_I8 ? 128 : 0; }

/* --- quantize ---------------------------------------------------------------------------------------------------- */

/* Half to even; 0 for a NaN. Beyond `most` every code is at an end; within it, adding 1.5 * 2^23 rounds. */
static inline int32_t rounded(float x) {
    const float magic = 12582912.0f, most = 1024.0f;
    x = x == x ? x : 0.0f;
    x = x < most ? x : most;
    x = x > -most ? x : -most;
    const float moved = x + magic;
    return (int32_t)(moved - magic);
}

void ek_run_quantize(const ek_plan_quantize *of, const ek_buffer *in, const ek_buffer *out) {
    const float scale = of->scale;
    const int32_t zero_point = of->zero_point + held_offset(out); /* as held, codes of both types are 0 to 255 */
    EACH_CHUNK(out) {
        const float *restrict from = floats_at(in, y, x, c);
        unsigned char *restrict to = ek_pixel_at(out, y, x) + c;
        const int32_t n = chunk_at(out, c);
        for (int32_t i = 0; i < n; i++) {
            const int32_t code = rounded(from[i] / scale) + zero_point;
            to[i] = (unsigned char)(code < 0 ? 0 : code > 255 ? 255 : code);
        }
    }
}

/* --- threshold --------------------------------------------------------------------------------------------------- */

/* How many thresholds x reaches. They stand in order, so those that it reaches come first; a NaN reaches none. */
static int32_t reached_integers(const int32_t *thresholds, int32_t count, bool falling, int32_t x) {
    int32_t low = 0, high = count;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (falling ? x <= thresholds[middle] : x >= thresholds[middle]) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int32_t reached_floats(const float *thresholds, int32_t count, bool falling, float x) {
    int32_t low = 0, high = count;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (falling ? x <= thresholds[middle] : x >= thresholds[middle]) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Bit i of the result: the lowest bit of codes[i] >> shift; codes has EK_CHUNK bytes. */
static uint64_t gathered(const unsigned char *codes, int shift) {
    uint64_t word = 0;
    for (int32_t i = 0; i < EK_CHUNK; i += 8) {
        uint64_t eight; /* a product that brings the bytes' lowest bits side by side into the highest byte */
        memcpy(&eight, codes + i, sizeof eight);
        eight = eight >> shift & UINT64_C(0x0101010101010101);
        word |= (eight * UINT64_C(0x0102040810204080)) >> 56 << i;
    }
    return word;
}

static void store_codes(const ek_buffer *out, unsigned char *pixel, int32_t c, unsigned char *codes, int32_t first) {
    const int32_t n = chunk_at(out, c), offset = first + held_offset(out);
    if (out->type != EK_BITS) {
        for (int32_t i = 0; i < n; i++) pixel[c + i] = (unsigned char)(codes[i] + offset);
        return;
    }
    uint64_t *words = (uint64_t *)(void *)pixel + c / 64;
    memset(codes + n, 0, (size_t)(EK_CHUNK - n));
    if (out->coding == EK_TERNARY) /* a thermometer: 0, 1, 3 */
        for (int32_t i = 0; i < EK_CHUNK; i++) codes[i] = (unsigned char)(codes[i] + codes[i] / 2);
    words[0] = gathered(codes, 0);
    if (out->planes > 1) words[out->words] = gathered(codes, 1);
}

/* One threshold for each of n channels. */
static void reach_one(const int32_t *restrict x, const int32_t *restrict thresholds, int32_t n,
                      unsigned char *restrict codes) {
    for (int32_t i = 0; i < n; i++) codes[i] = x[i] >= thresholds[i];
}

static bool falls_at(const unsigned char *falling, int32_t c) {
    return falling != NULL && (falling[c / 8] >> c % 8 & 1) != 0;
}

void ek_run_threshold(const ek_plan_threshold *of, const ek_plan_view *plan, const ek_buffer *in,
                      const ek_buffer *out) {
    const unsigned char *thresholds = ek_span_at(plan, of->thresholds), *mask = ek_span_at(plan, of->falling);
    const int32_t count = (int32_t)of->levels - 1, first = of->first;
    const bool floats = in->type == EK_F32;
    int32_t values[EK_CHUNK];
    unsigned char codes[EK_CHUNK];
    EACH_CHUNK(out) {
        const int32_t n = chunk_at(out, c);
        const void *from = thresholds + (size_t)c * (size_t)count * 4;
        const float *numbers = from, *given = floats ? floats_at(in, y, x, c) : NULL;
        const int32_t *integers = from;
        if (!floats) ek_load_values(in, ek_pixel_at(in, y, x), c, n, values);
        if (!floats && count == 1 && mask == NULL)
            reach_one(values, integers, n, codes);
        else if (floats)
            for (int32_t i = 0; i < n; i++)
                codes[i] = (unsigned char)reached_floats(numbers + i * count, count, falls_at(mask, c + i), given[i]);
        else
            for (int32_t i = 0; i < n; i++)
                codes[i] =
                    (unsigned char)reached_integers(integers + i * count, count, falls_at(mask, c + i), values[i]);
        store_codes(out, ek_pixel_at(out, y, x), c, codes, first);
    }
}

/* --- add, affine, requantize ------------------------------------------------------------------------------------- */

static void add_floats(const ek_buffer *a, const ek_buffer *b, const ek_buffer *out) {
    EACH_CHUNK(out) {
        const float *first = floats_at(a, y, x, c), *second = floats_at(b, y, x, c);
        float *to = floats_at(out, y, x, c);
        const int32_t n = chunk_at(out, c);
        for (int32_t i = 0; i < n; i++) to[i] = ek_one_nan(first[i] + second[i]);
    }
}

/* Integers wrap as two's complement does. */
void ek_run_add(const ek_buffer *a, const ek_buffer *b, const ek_buffer *out) {
    int32_t first[EK_CHUNK], second[EK_CHUNK];
    if (out->type == EK_F32) {
        add_floats(a, b, out);
        return;
    }
    EACH_CHUNK(out) {
        const int32_t n = chunk_at(out, c);
        uint32_t *to = (void *)integers_at(out, y, x, c);
        ek_load_values(a, ek_pixel_at(a, y, x), c, n, first);
        ek_load_values(b, ek_pixel_at(b, y, x), c, n, second);
        for (int32_t i = 0; i < n; i++) to[i] = (uint32_t)first[i] + (uint32_t)second[i];
    }
}

void ek_run_affine(const ek_plan_affine *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out) {
    const float *scale = ek_span_at(plan, of->scale), *bias = ek_span_at(plan, of->bias);
    int32_t values[EK_CHUNK];
    EACH_CHUNK(out) {
        const int32_t n = chunk_at(out, c);
        float *to = floats_at(out, y, x, c);
        ek_load_values(in, ek_pixel_at(in, y, x), c, n, values);
        for (int32_t i = 0; i < n; i++) {
            const float product = (float)values[i] * scale[c + i];
            to[i] = product + bias[c + i];
        }
    }
}

/* The floor of a / 2^shift. */
static int64_t shifted(int64_t a, int shift) { return a < 0 ? ~(~a >> shift) : a >> shift; }

void ek_run_requantize(const ek_plan_requantize *of, const ek_plan_view *plan, const ek_buffer *in,
                       const ek_buffer *out) {
    const int32_t *multiplier = ek_span_at(plan, of->multiplier);
    const unsigned char *addends = ek_span_at(plan, of->addend), *shift = ek_span_at(plan, of->shift);
    const int32_t low = of->low, high = of->high, offset = held_offset(out);
    int32_t codes[EK_CHUNK];
    EACH_CHUNK(out) {
        const int32_t n = chunk_at(out, c);
        const int32_t *from = integers_at(in, y, x, c);
        for (int32_t i = 0; i < n; i++) {
            int64_t addend; /* spans are aligned to 4 bytes only */
            memcpy(&addend, addends + 8 * (size_t)(c + i), sizeof addend);
            const int64_t all = shifted((int64_t)from[i] * multiplier[c + i] + addend, shift[c + i]);
            codes[i] = (int32_t)(all < low ? low : all > high ? high : all);
        }
        if (out->type == EK_I32) {
            memcpy(integers_at(out, y, x, c), codes, (size_t)n * 4);
            continue;
        }
        unsigned char *to = ek_pixel_at(out, y, x) + c;
        for (int32_t i = 0; i < n; i++) to[i] = (unsigned char)(codes[i] + offset);
    }
}
