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

/* Beyond this every code is at an end; within it, adding and taking away 1.5 * 2^23 rounds half to even. */
static int32_t rounded(float x) {
    const float magic = 12582912.0f, most = 1024.0f;
    if (x != x) return 0;
    if (x > most) x = most;
    if (x < -most) x = -most;
    const float shifted = x + magic;
    return (int32_t)(shifted - magic);
}

void ek_run_quantize(const ek_plan_quantize *of, const ek_buffer *in, const ek_buffer *out) {
    const int32_t low = out->type == EK_I8 ? -128 : 0, high = low + 255;
    EACH_CHUNK(out) {
        const float *from = floats_at(in, y, x, c);
        unsigned char *to = ek_pixel_at(out, y, x) + c;
        for (int32_t i = 0; i < chunk_at(out, c); i++) {
            const int32_t code = rounded(from[i] / of->scale) + of->zero_point;
            to[i] = (unsigned char)((code < low ? low : code > high ? high : code) + held_offset(out));
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

static void store_codes(const ek_buffer *out, unsigned char *pixel, int32_t c, const int32_t *codes, int32_t first) {
    const int32_t n = chunk_at(out, c);
    if (out->type != EK_BITS) {
        for (int32_t i = 0; i < n; i++) pixel[c + i] = (unsigned char)(codes[i] + first + held_offset(out));
        return;
    }
    uint64_t *words = (void *)pixel, b0 = 0, b1 = 0;
    const bool ternary = out->coding == EK_TERNARY;
    for (int32_t i = 0; i < n; i++) {
        b0 |= (uint64_t)(ternary ? codes[i] >= 1 : codes[i] & 1) << i;
        b1 |= (uint64_t)(codes[i] >> 1) << i;
    }
    words[c / 64] = b0;
    if (out->planes > 1) words[out->words + c / 64] = b1;
}

void ek_run_threshold(const ek_plan_threshold *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out) {
    const unsigned char *thresholds = ek_span_at(plan, of->thresholds), *falling = ek_span_at(plan, of->falling);
    const int32_t count = (int32_t)of->levels - 1;
    int32_t values[EK_CHUNK], codes[EK_CHUNK];
    EACH_CHUNK(out) {
        const int32_t n = chunk_at(out, c);
        const bool floats = in->type == EK_F32;
        if (!floats) ek_load_values(in, ek_pixel_at(in, y, x), c, n, values);
        for (int32_t i = 0; i < n; i++) {
            const void *of_channel = thresholds + (size_t)(c + i) * (size_t)count * 4;
            const bool falls = falling != NULL && (falling[(c + i) / 8] >> (c + i) % 8 & 1) != 0;
            codes[i] = floats ? reached_floats(of_channel, count, falls, floats_at(in, y, x, c)[i])
                              : reached_integers(of_channel, count, falls, values[i]);
        }
        store_codes(out, ek_pixel_at(out, y, x), c, codes, of->first);
    }
}

/* --- add, affine, requantize ------------------------------------------------------------------------------------- */

static void add_floats(const ek_buffer *a, const ek_buffer *b, const ek_buffer *out) {
    EACH_CHUNK(out) {
        const float *first = floats_at(a, y, x, c), *second = floats_at(b, y, x, c);
        float *to = floats_at(out, y, x, c);
        for (int32_t i = 0; i < chunk_at(out, c); i++) to[i] = ek_one_nan(first[i] + second[i]);
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
    EACH_CHUNK(out) {
        const int32_t *from = integers_at(in, y, x, c);
        for (int32_t i = 0; i < chunk_at(out, c); i++) {
            int64_t addend; /* spans are aligned to 4 bytes only */
            memcpy(&addend, addends + 8 * (size_t)(c + i), sizeof addend);
            const int64_t all = shifted((int64_t)from[i] * multiplier[c + i] + addend, shift[c + i]);
            const int32_t code = (int32_t)(all < of->low ? of->low : all > of->high ? of->high : all);
            if (out->type == EK_I32) integers_at(out, y, x, c)[i] = code;
            else ek_pixel_at(out, y, x)[c + i] = (unsigned char)(code + held_offset(out));
        }
    }
}
