/* Slow and obvious: one value at a time. Every other kernel is tested against this file. */
#include <string.h>

#include "kernels.h"

/* --- what both families of linear layers do with Q of one channel of one pixel ---------------------------------- */

static void set_bit(uint64_t *pixel, const ek_epilogue *to, int32_t plane, int32_t channel) {
    pixel[plane * to->bits_words + channel / 64] |= UINT64_C(1) << (channel % 64);
}

/* Q falls where the sum rises, and the limits fall with the level, so Q keeps to the first `code` of them. */
static void write_code(const ek_epilogue *to, uint64_t *pixel, const int32_t *limits, int32_t channel, int32_t q) {
    int32_t code = 0;
    for (int32_t level = 0; level < to->levels; level++) code += q <= limits[level * to->padded + channel];
    if (to->levels == 2) {
        if (code >= 1) set_bit(pixel, to, 0, channel);
        if (code >= 2) set_bit(pixel, to, 1, channel);
    } else {
        if (code & 1) set_bit(pixel, to, 0, channel);
        if (code & 2) set_bit(pixel, to, 1, channel);
    }
}

static void finish(const ek_window_layer *layer, int32_t y, int32_t x, int32_t channel, int32_t q) {
    const ek_epilogue *to = &layer->to;
    const ptrdiff_t class = layer->class_of_row[y] + layer->class_of_column[x];
    if (to->bits != NULL) {
        uint64_t *pixel = to->bits + y * to->bits_row + x * to->bits_pixel;
        const int32_t planes = to->levels == 1 ? 1 : 2;
        if (channel == 0) memset(pixel, 0, (size_t)(planes * to->bits_words) * sizeof *pixel);
        write_code(to, pixel, to->limits + class * to->levels * to->padded, channel, q);
        return;
    }
    const int32_t sum = (to->constant2[class * to->padded + channel] - to->gain2 * q) / 2;
    const ptrdiff_t at = ((ptrdiff_t)y * layer->out_w + x) * layer->out_c + channel;
    if (to->sums != NULL) to->sums[at] = sum;
    if (to->scaled == NULL) return;
    const float product = (float)sum * to->scale[channel];
    to->scaled[at] = product + to->bias[channel];
}

/* --- bytes times small integers --------------------------------------------------------------------------------- */

static size_t dot8_weights(const ek_dot8_layer *layer) {
    return (size_t)layer->layer.kernel_h * (size_t)layer->layer.kernel_w * (size_t)layer->in_c;
}

static size_t dot8_pack_size(const ek_dot8_layer *layer) { return dot8_weights(layer) * (size_t)layer->layer.out_c; }

static void dot8_pack(const ek_dot8_layer *layer, const int8_t *rows, void *packed) {
    memcpy(packed, rows, dot8_pack_size(layer));
}

static size_t dot8_scratch_size(const ek_dot8_layer *layer) {
    (void)layer;
    return 0;
}

static int32_t dot8_sum(const ek_dot8_layer *of, const int8_t *row, int32_t y, int32_t x) {
    const ek_window_layer *layer = &of->layer;
    int32_t sum = 0;
    for (int32_t ky = 0; ky < layer->kernel_h; ky++)
        for (int32_t kx = 0; kx < layer->kernel_w; kx++)
            for (int32_t c = 0; c < of->in_c; c++) {
                const ptrdiff_t row_at = ((ptrdiff_t)y * layer->stride_h + ky) * of->in_row;
                const ptrdiff_t pixel_at = ((ptrdiff_t)x * layer->stride_w + kx) * of->in_pixel;
                sum += of->in[row_at + pixel_at + c] * *row++;
            }
    return sum;
}

static void dot8_run(const ek_dot8_layer *of, void *scratch) {
    (void)scratch;
    const int8_t *rows = of->packed;
    for (int32_t y = 0; y < of->layer.out_h; y++)
        for (int32_t x = 0; x < of->layer.out_w; x++)
            for (int32_t channel = 0; channel < of->layer.out_c; channel++) {
                const int8_t *row = rows + (size_t)channel * dot8_weights(of);
                finish(&of->layer, y, x, channel, -dot8_sum(of, row, y, x));
            }
}

const ek_dot8_kernel ek_dot8_reference = {dot8_pack_size, dot8_pack, dot8_scratch_size, dot8_run};

/* --- family "xnor": one bit at a time, from the plan's rows ----------------------------------------------------- */

static int input_bit(const ek_xnor_layer *l, int32_t y, int32_t x, int32_t ky, int32_t kx, int plane, int32_t c) {
    const uint64_t *pixel = l->in + (y * l->layer.stride_h + ky) * l->in_row + (x * l->layer.stride_w + kx) * l->in_pixel;
    return (int)(pixel[plane * l->words + c / 64] >> (c % 64) & 1);
}

static int weight_bit(const ek_xnor_layer *l, int32_t channel, int plane, size_t term) {
    const size_t terms = (size_t)l->layer.kernel_h * (size_t)l->layer.kernel_w * (size_t)l->in_c;
    const size_t row_words = (terms + 31) / 32;
    const uint32_t *rows = l->packed;
    return (int)(rows[((size_t)channel * (size_t)l->weight_planes + (size_t)plane) * row_words + term / 32] >>
                     (term % 32) & 1);
}

static int32_t differing(const ek_xnor_layer *l, int32_t y, int32_t x, int32_t channel) {
    int32_t q = 0;
    for (int32_t i = 0; i < l->passes; i++) {
        size_t term = 0;
        for (int32_t ky = 0; ky < l->layer.kernel_h; ky++)
            for (int32_t kx = 0; kx < l->layer.kernel_w; kx++)
                for (int32_t c = 0; c < l->in_c; c++, term++)
                    if (input_bit(l, y, x, ky, kx, l->pass[i].in_plane, c) !=
                        weight_bit(l, channel, l->pass[i].weight_plane, term))
                        q += INT32_C(1) << l->pass[i].weight;
    }
    return q;
}

static void xnor_run(const ek_xnor_layer *l, void *scratch) {
    (void)scratch;
    for (int32_t y = 0; y < l->layer.out_h; y++)
        for (int32_t x = 0; x < l->layer.out_w; x++)
            for (int32_t channel = 0; channel < l->layer.out_c; channel++)
                finish(&l->layer, y, x, channel, differing(l, y, x, channel));
}

static size_t xnor_nothing(const ek_xnor_layer *l) {
    (void)l;
    return 0;
}

const ek_xnor_kernel ek_xnor_reference = {xnor_nothing, NULL, xnor_nothing, xnor_run};
