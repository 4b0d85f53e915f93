/* The same values in another shape: runs that neither tensor interrupts are copied whole. */
#include <string.h>

#include "executor.h"

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static unsigned char *pixel_of(const ek_buffer *b, int64_t index) {
    return ek_pixel_at(b, (int32_t)(index / b->w), (int32_t)(index % b->w));
}

static void clear(const ek_buffer *b) {
    for (int32_t y = 0; y < b->h; y++) memset(ek_pixel_at(b, y, 0), 0, (size_t)((uint64_t)b->w * b->pixel));
}

static void copy_bits(const ek_buffer *in, const ek_buffer *out) {
    const int64_t count = (int64_t)in->h * in->w * in->c;
    clear(out);
    for (int64_t at = 0, n; at < count; at += n) {
        const int64_t from = at % in->c, to = at % out->c;
        const uint64_t *source = (const void *)pixel_of(in, at / in->c);
        uint64_t *target = (void *)pixel_of(out, at / out->c);
        n = least(least(64 - from % 64, in->c - from), least(64 - to % 64, out->c - to));
        const uint64_t mask = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
        for (int32_t plane = 0; plane < in->planes; plane++) {
            const uint64_t bits = source[plane * in->words + from / 64] >> from % 64 & mask;
            target[plane * out->words + to / 64] |= bits << to % 64;
        }
    }
}

static void copy_numbers(const ek_buffer *in, const ek_buffer *out) {
    const int64_t each = in->type == EK_U8 || in->type == EK_I8 ? 1 : 4;
    const int64_t in_row = (int64_t)in->w * in->c, out_row = (int64_t)out->w * out->c, count = in->h * in_row;
    for (int64_t at = 0, n; at < count; at += n) {
        const int64_t from = at % in_row, to = at % out_row;
        n = least(in_row - from, out_row - to);
        memcpy(ek_pixel_at(out, (int32_t)(at / out_row), 0) + to * each,
               ek_pixel_at(in, (int32_t)(at / in_row), 0) + from * each, (size_t)(n * each));
    }
}

void ek_run_copy(const ek_buffer *in, const ek_buffer *out) {
    if (in->type == EK_BITS) copy_bits(in, out);
    else copy_numbers(in, out);
}
