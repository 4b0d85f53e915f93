/* Tensors as they are held: borders, the outside's layout, and the copies that some kernels want. */
#include <string.h>

#include "executor.h"

static uint64_t interior_row(const ek_buffer *b) { return (uint64_t)b->w * b->pixel; }

static bool has_border(const ek_buffer *b) { return (b->top | b->left | b->bottom | b->right) != 0; }

/* --- borders ---------------------------------------------------------------------------------------------------- */

static void fill_bits(const ek_buffer *b, unsigned char *at, uint64_t pixels) {
    uint64_t *to = (void *)at;
    for (; pixels > 0; pixels--)
        for (int32_t plane = 0; plane < b->planes; plane++) {
            const uint64_t word = (b->fill >> plane & 1) != 0 ? UINT64_MAX : 0;
            for (int32_t i = 0; i < b->words - 1; i++) *to++ = word;
            *to++ = word & ek_last_word(b->c);
        }
}

static void fill(const ek_buffer *b, unsigned char *at, uint64_t pixels) {
    if (b->type == EK_BITS && b->fill != 0) fill_bits(b, at, pixels);
    else memset(at, b->fill, (size_t)(pixels * b->pixel));
}

void ek_fill_border(const ek_buffer *b) {
    if (!has_border(b)) return;
    const uint64_t across = b->row / b->pixel, sides = (uint64_t)b->left + (uint64_t)b->right;
    unsigned char *first = b->data - (uint64_t)b->top * b->row - (uint64_t)b->left * b->pixel;
    fill(b, first, (uint64_t)b->top * across + (uint64_t)b->left);
    for (int32_t y = 0; y + 1 < b->h; y++) fill(b, ek_pixel_at(b, y, b->w), sides);
    fill(b, ek_pixel_at(b, b->h - 1, b->w), (uint64_t)b->right + (uint64_t)b->bottom * across);
}

/* --- the outside's layout --------------------------------------------------------------------------------------- */

/* Ternary codes have their second bit only beside the first. */
static void tidy_ternary(const ek_buffer *b, uint64_t *pixel) {
    for (int32_t i = 0; i < b->words; i++) {
        const uint64_t first = pixel[i], second = pixel[b->words + i];
        pixel[i] = first | second;
        pixel[b->words + i] = first & second;
    }
}

/* Whether a pixel's bits outside fill the words that hold them. */
static bool fills_words(const ek_buffer *b) { return b->type == EK_BITS && b->c % 64 == 0; }

static void bring_in_bits(const ek_buffer *b, const unsigned char *from) {
    const size_t bytes = ((size_t)b->c + 7) / 8;
    const uint64_t last = ek_last_word(b->c);
    for (int32_t y = 0; y < b->h; y++)
        for (int32_t x = 0; x < b->w; x++) {
            uint64_t *pixel = ek_words_at(b, y, x), *to = pixel;
            for (int32_t plane = 0; plane < b->planes; plane++, from += bytes, to += b->words) {
                to[b->words - 1] = 0;
                memcpy(to, from, bytes);
                to[b->words - 1] &= last;
            }
            if (b->coding == EK_TERNARY) tidy_ternary(b, pixel);
        }
}

static void bring_in_rows(const ek_buffer *b, const unsigned char *from) {
    const size_t bytes = (size_t)interior_row(b);
    for (int32_t y = 0; y < b->h; y++, from += bytes) memcpy(ek_pixel_at(b, y, 0), from, bytes);
}

/* c, h, w outside. */
static void bring_in_planes(const ek_buffer *b, const unsigned char *from) {
    const size_t each = b->type == EK_U8 || b->type == EK_I8 ? 1 : 4;
    for (int32_t c = 0; c < b->c; c++)
        for (int32_t y = 0; y < b->h; y++) {
            unsigned char *to = ek_pixel_at(b, y, 0) + (size_t)c * each;
            if (each == 1)
                for (int32_t x = 0; x < b->w; x++, to += b->pixel) *to = *from++;
            else
                for (int32_t x = 0; x < b->w; x++, to += b->pixel, from += 4) memcpy(to, from, 4);
        }
}

static void flip_top_bits(unsigned char *at, size_t n) {
    for (size_t i = 0; i < n; i++) at[i] ^= 0x80;
}

void ek_bring_in(const ek_buffer *b, const ek_plan_tensor *tensor, const void *from) {
    if (b->type == EK_BITS && !(fills_words(b) && b->coding != EK_TERNARY)) bring_in_bits(b, from);
    else if ((tensor->flags & EK_TENSOR_CHANNELS_FIRST) != 0) bring_in_planes(b, from);
    else bring_in_rows(b, from);
    if (b->type == EK_I8)
        for (int32_t y = 0; y < b->h; y++) flip_top_bits(ek_pixel_at(b, y, 0), (size_t)interior_row(b));
    ek_fill_border(b);
}

void ek_hand_out(const ek_buffer *b, void *to) {
    const size_t bits = ((size_t)b->c + 7) / 8, row = (size_t)interior_row(b);
    unsigned char *at = to;
    for (int32_t y = 0; y < b->h; y++) {
        if (b->type != EK_BITS || fills_words(b)) {
            memcpy(at, ek_pixel_at(b, y, 0), row);
            if (b->type == EK_I8) flip_top_bits(at, row);
            at += row;
            continue;
        }
        for (int32_t x = 0; x < b->w; x++)
            for (int32_t plane = 0; plane < b->planes; plane++, at += bits)
                memcpy(at, ek_words_at(b, y, x) + plane * b->words, bits);
    }
}

/* --- values ----------------------------------------------------------------------------------------------------- */

/* Least value of a coding, and what each of its two planes adds. */
static void weights_of(int coding, int32_t *least, int32_t *first, int32_t *second) {
    *least = coding == EK_SIGNED2 ? -2 : coding == EK_UNSIGNED2 ? 0 : -1;
    *first = coding == EK_BIPOLAR ? 2 : 1;
    *second = coding == EK_BIPOLAR ? 0 : coding == EK_TERNARY ? 1 : 2;
}

static void load_bits(const ek_buffer *b, const unsigned char *pixel, int32_t from, int32_t n, int32_t *values) {
    const uint64_t *words = (const void *)pixel;
    const uint64_t b0 = words[from / 64], b1 = b->planes > 1 ? words[b->words + from / 64] : 0;
    int32_t least, first, second;
    weights_of(b->coding, &least, &first, &second);
    for (int32_t i = 0; i < n; i++)
        values[i] = least + (int32_t)(b0 >> i & 1) * first + (int32_t)(b1 >> i & 1) * second;
}

void ek_load_values(const ek_buffer *b, const unsigned char *pixel, int32_t from, int32_t n, int32_t *values) {
    if (b->type == EK_BITS) {
        load_bits(b, pixel, from, n, values);
    } else if (b->type == EK_I32) {
        memcpy(values, pixel + 4 * (size_t)from, 4 * (size_t)n);
    } else {
        const int32_t offset = b->type == EK_I8 ? 128 : 0;
        for (int32_t i = 0; i < n; i++) values[i] = pixel[from + i] - offset;
    }
}

void ek_read_codes(const ek_buffer *b, int32_t *codes) {
    int32_t least = 0, first, second;
    if (b->type == EK_BITS) weights_of(b->coding, &least, &first, &second);
    const int32_t step = b->type == EK_BITS && b->coding == EK_BIPOLAR ? 2 : 1;
    for (int32_t y = 0; y < b->h; y++)
        for (int32_t x = 0; x < b->w; x++)
            for (int32_t c = 0; c < b->c; c += EK_CHUNK) {
                const int32_t n = b->c - c < EK_CHUNK ? b->c - c : EK_CHUNK;
                const unsigned char *pixel = ek_pixel_at(b, y, x);
                if (b->type == EK_F32) memcpy(codes, pixel + 4 * (size_t)c, 4 * (size_t)n);
                else ek_load_values(b, pixel, c, n, codes);
                if (b->type == EK_BITS)
                    for (int32_t i = 0; i < n; i++) codes[i] = (codes[i] - least) / step;
                codes += n;
            }
}

/* --- copies for one operator ------------------------------------------------------------------------------------ */

static void stage_copy(const ek_buffer *from, const ek_buffer *to) {
    for (int32_t y = 0; y < from->h; y++)
        memcpy(ek_pixel_at(to, y, 0), ek_pixel_at(from, y, 0), (size_t)interior_row(from));
}

/* Byte i of the result: bit i of every byte (Warren, Hacker's Delight, 2nd edition, section 7-3). */
static uint64_t transposed(uint64_t x) {
    uint64_t t = (x ^ x >> 7) & UINT64_C(0x00aa00aa00aa00aa);
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & UINT64_C(0x0000cccc0000cccc);
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & UINT64_C(0x00000000f0f0f0f0);
    return x ^ t ^ t << 28;
}

static void stage_planes(const ek_buffer *from, const ek_buffer *to) {
    const size_t c = (size_t)from->c, stride = (size_t)to->words * 8;
    for (int32_t y = 0; y < from->h; y++)
        for (int32_t x = 0; x < from->w; x++) {
            const unsigned char *in = ek_pixel_at(from, y, x);
            unsigned char *out = ek_pixel_at(to, y, x);
            for (size_t plane = 1; plane <= 8; plane++) memset(out + plane * stride - 8, 0, 8);
            for (size_t i = 0; i < c; i += 8) {
                uint64_t eight = 0;
                memcpy(&eight, in + i, c - i < 8 ? c - i : 8);
                eight = transposed(eight);
                for (int32_t plane = 0; plane < 8; plane++)
                    out[(size_t)plane * stride + i / 8] = (unsigned char)(eight >> 8 * plane);
            }
        }
}

static void stage_bytes(const ek_buffer *from, const ek_buffer *to) {
    const int32_t lift = ek_lift_of(from->coding);
    int32_t values[EK_CHUNK];
    for (int32_t y = 0; y < from->h; y++)
        for (int32_t x = 0; x < from->w; x++)
            for (int32_t c = 0; c < from->c; c += EK_CHUNK) {
                const int32_t n = from->c - c < EK_CHUNK ? from->c - c : EK_CHUNK;
                unsigned char *out = ek_pixel_at(to, y, x) + c;
                ek_load_values(from, ek_pixel_at(from, y, x), c, n, values);
                for (int32_t i = 0; i < n; i++) out[i] = (unsigned char)(values[i] + lift);
            }
}

void ek_stage(const ek_step *step, const ek_buffer *from) {
    const ek_buffer *to = &step->staged;
    if (step->linear.staging == EK_COPIED) stage_copy(from, to);
    else if (step->linear.staging == EK_PLANES) stage_planes(from, to);
    else stage_bytes(from, to);
    ek_fill_border(to);
}
