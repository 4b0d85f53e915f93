/* Linear operators: every coding becomes planes of +1 and -1, passes over them, and tables for the kernel's epilogue.
 *
 * Activations and weights are x = (o + sum over i of 2^a[i] s_i) / 2 with s_i = +1 or -1 the planes. A pair of planes
 * with N terms gives N - 2 popcount(xor), so twice a sum over N terms is
 *     constant2 - gain2 * Q
 *     gain2     = the smallest 2^(a[i] + b[j])
 *     Q         = sum over pairs of 2^(a[i] + b[j]) / gain2 * popcount
 *     constant2 = N / 2 * sum over pairs of 2^(a[i] + b[j]) + o * (sum of the weights).
 * Weights have o = 0 in their planes, else the constant would depend on the data: SIGNED2 takes three planes for that.
 */
#include <string.h>

#include "executor.h"
#include "kernels.h"

/* From so many weights on, a dense layer on bytes with weights of one bit takes eight passes over the bytes' planes: each
 * weight is read once per run, so that with 8 bits a weight, as byte kernels want them, memory limits it as soon as they
 * leave the cache nearest to the core (32 KiB on the boards), and they take eight times the memory. Below, and for a
 * convolution, which reads each weight for every pixel, the byte kernel's products win over the bits' eighth. */
enum { PLANES_FROM_WEIGHTS = 1 << 15 };

typedef struct {
    int32_t count;
    uint8_t log2[8];
    int32_t offset; /* o above */
} planes;

static planes activation_planes(const ek_plan_tensor *in) {
    if (in->type != EK_BITS) return (planes){8, {0, 1, 2, 3, 4, 5, 6, 7}, in->type == EK_U8 ? 255 : -1};
    switch (in->coding) {
        case EK_UNSIGNED2: return (planes){2, {0, 1}, 3};
        case EK_SIGNED2: return (planes){2, {0, 1}, -1};
        case EK_TERNARY: return (planes){2, {0, 0}, 0};
        default: return (planes){1, {1}, 0};
    }
}

static planes weight_planes(int coding) {
    switch (coding) {
        case EK_SIGNED2: return (planes){3, {1, 0, 0}, 0};
        case EK_TERNARY: return (planes){2, {0, 0}, 0};
        default: return (planes){1, {1}, 0};
    }
}

int ek_staging_of(const ek_plan_view *plan, const ek_plan_operator *op, int *family) {
    const ek_plan_tensor *in = ek_tensor_at(plan, op->in[0]), *out = ek_tensor_at(plan, op->out);
    const ek_plan_linear *of = &op->of.linear;
    if (in->type == EK_BITS) {
        const bool bytes = of->coding == EK_INTEGER8 || of->coding == EK_UNSIGNED2;
        *family = bytes ? EK_FAMILY_DOT8 : EK_FAMILY_XNOR;
        return bytes ? EK_BYTES : EK_DIRECT;
    }
    const bool dense = out->h == 1 && out->w == 1;
    const bool by_planes = dense && of->coding == EK_BIPOLAR && ek_terms_of(of, in) * out->c >= PLANES_FROM_WEIGHTS;
    *family = by_planes ? EK_FAMILY_XNOR : EK_FAMILY_DOT8;
    return by_planes ? EK_PLANES : EK_DIRECT;
}

/* What makes a coding's least value 0. */
int32_t ek_lift_of(int coding) { return coding == EK_SIGNED2 ? 2 : coding == EK_UNSIGNED2 ? 0 : 1; }

/* --- geometry and sizes ----------------------------------------------------------------------------------------- */

/* Zeros on bipolar bits have no code: each kind of border takes constants of its own. */
static bool has_classes(const ek_plan_tensor *in, const ek_plan_linear *of, int family) {
    return family == EK_FAMILY_XNOR && in->type == EK_BITS && in->coding == EK_BIPOLAR && of->pad == EK_PAD_ZERO &&
           ek_has_padding(of);
}

static void set_window(const ek_plan_linear *of, const ek_buffer *out, ek_window_layer *to) {
    *to = (ek_window_layer){
        .out_h = out->h, .out_w = out->w, .out_c = out->c,
        .kernel_h = of->kernel_h, .kernel_w = of->kernel_w,
        .stride_h = of->stride_h, .stride_w = of->stride_w,
    };
    to->to.padded = (out->c + EK_BLOCK - 1) / EK_BLOCK * EK_BLOCK;
    if (of->epilogue == EK_THRESHOLDS) {
        to->to.levels = ek_levels_of(out->coding) - 1;
        to->to.bits_row = (ptrdiff_t)(out->row / 8);
        to->to.bits_pixel = (ptrdiff_t)(out->pixel / 8);
        to->to.bits_words = out->words;
    }
}

/* Pairs of planes, heaviest first. */
static void set_passes(const ek_plan_tensor *in, const ek_plan_linear *of, ek_xnor_layer *to) {
    const planes x = activation_planes(in), w = weight_planes(of->coding);
    int least = 255;
    for (int32_t i = 0; i < x.count; i++)
        for (int32_t j = 0; j < w.count; j++) {
            const uint8_t weight = (uint8_t)(x.log2[i] + w.log2[j]);
            int32_t at = to->passes++;
            for (; at > 0 && to->pass[at - 1].weight < weight; at--) to->pass[at] = to->pass[at - 1];
            to->pass[at] = (ek_pass){(uint8_t)i, (uint8_t)j, weight};
            if (weight < least) least = weight;
        }
    for (int32_t i = 0; i < to->passes; i++) to->pass[i].weight = (uint8_t)(to->pass[i].weight - least);
    to->layer.to.gain2 = 1 << least;
}

static void set_xnor(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, ek_linear_step *step) {
    const ek_plan_linear *of = &op->of.linear;
    ek_xnor_layer *layer = &step->of.xnor;
    layer->in_row = (ptrdiff_t)(in->row / 8);
    layer->in_pixel = (ptrdiff_t)(in->pixel / 8);
    layer->in_c = in->c;
    layer->words = in->words;
    layer->in_planes = in->planes;
    layer->weight_planes = weight_planes(of->coding).count;
    set_passes(ek_tensor_at(plan, op->in[0]), of, layer);
    const int64_t row_words = (ek_terms_of(of, ek_tensor_at(plan, op->in[0])) + 31) / 32;
    if (of->coding == EK_SIGNED2) step->rows_size = (uint64_t)layer->layer.out_c * 3 * (uint64_t)row_words * 4;
    const size_t size = step->kernel.xnor->pack_size(layer);
    step->packed_size = size == 0 ? step->rows_size : size;
    if (size == 0) step->rows_size = 0;
    step->scratch_size = step->kernel.xnor->scratch_size(layer);
}

static void set_dot8(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, ek_linear_step *step) {
    const ek_plan_linear *of = &op->of.linear;
    ek_dot8_layer *layer = &step->of.dot8;
    layer->in_row = (ptrdiff_t)in->row;
    layer->in_pixel = (ptrdiff_t)in->pixel;
    layer->in_c = in->c;
    layer->layer.to.gain2 = 2;
    const int64_t terms = ek_terms_of(of, ek_tensor_at(plan, op->in[0]));
    if (of->coding != EK_INTEGER8 || terms % 4 != 0) step->rows_size = (uint64_t)layer->layer.out_c * (uint64_t)terms;
    step->packed_size = step->kernel.dot8->pack_size(layer);
    step->scratch_size = step->kernel.dot8->scratch_size(layer);
}

bool ek_prepare_linear(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, const ek_buffer *out,
                       const char *kernels, ek_linear_step *step) {
    const ek_plan_tensor *tensor = ek_tensor_at(plan, op->in[0]);
    const ek_plan_linear *of = &op->of.linear;
    *step = (ek_linear_step){0};
    step->staging = ek_staging_of(plan, op, &step->family);
    const void *kernel = ek_find_kernel(step->family, kernels);
    const uint64_t packed_at_most = ((uint64_t)out->c + EK_BLOCK) * ((uint64_t)ek_terms_of(of, tensor) + EK_BLOCK) * 16;
    if (kernel == NULL || packed_at_most > SIZE_MAX) return false; /* kernels count in size_t, which 32 bits can be */
    step->row_classes = step->column_classes = 1;
    if (has_classes(tensor, of, step->family)) {
        step->row_classes = ek_classes_along(out->h, of->stride_h, of->kernel_h, of->pad_top, tensor->h);
        step->column_classes = ek_classes_along(out->w, of->stride_w, of->kernel_w, of->pad_left, tensor->w);
    }
    if (step->family == EK_FAMILY_XNOR) {
        step->kernel.xnor = kernel;
        set_window(of, out, &step->of.xnor.layer);
        set_xnor(plan, op, in, step);
    } else {
        step->kernel.dot8 = kernel;
        set_window(of, out, &step->of.dot8.layer);
        set_dot8(plan, op, in, step);
    }
    return true;
}

uint64_t ek_classes_bytes(const ek_linear_step *step) {
    return ((uint64_t)step->of.layer.out_h + (uint64_t)step->of.layer.out_w) * sizeof(uint16_t);
}

uint64_t ek_table_bytes(const ek_linear_step *step) {
    const ek_epilogue *to = &step->of.layer.to;
    const uint64_t rows = (uint64_t)step->row_classes * (uint64_t)step->column_classes;
    return rows * (to->levels > 0 ? (uint64_t)to->levels : 1) * (uint64_t)to->padded * sizeof(int32_t);
}

/* --- tables ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const ek_plan_linear *of;
    const unsigned char *weights;
    int64_t terms, row_bytes;
    int32_t in_c;
    int32_t offset;  /* what each weight adds to twice a sum */
    int32_t pairs;   /* what each term adds to twice a sum */
    const unsigned char *thresholds;
} constants;

/* Ones among bits start..start+n of a plane (Warren, Hacker's Delight, 2nd edition, figure 5-2). */
static int64_t ones_of(const uint32_t *plane, int64_t start, int64_t n) {
    int64_t ones = 0;
    for (const int64_t end = start + n; start < end;) {
        const int64_t from = start % 32, count = end - start < 32 - from ? end - start : 32 - from;
        uint32_t v = plane[start / 32] >> from;
        if (count < 32) v &= (UINT32_C(1) << count) - 1;
        v -= v >> 1 & 0x55555555u;
        v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
        v = (v + (v >> 4)) & 0x0f0f0f0fu;
        ones += v * 0x01010101u >> 24;
        start += count;
    }
    return ones;
}

/* Sum of weights start..start+n of a row. */
static int64_t sum_of(const constants *k, int32_t channel, int64_t start, int64_t n) {
    const unsigned char *row = k->weights + channel * k->row_bytes;
    if (k->of->coding == EK_INTEGER8) {
        int64_t sum = 0;
        for (int64_t i = start; i < start + n; i++) sum += row[i] < 128 ? row[i] : row[i] - 256;
        return sum;
    }
    const uint32_t *plane = (const void *)row;
    const int64_t words = (k->terms + 31) / 32, first = ones_of(plane, start, n);
    if (k->of->coding == EK_BIPOLAR) return 2 * first - n;
    const int64_t second = ones_of(plane + words, start, n);
    if (k->of->coding == EK_TERNARY) return first + second - n;
    return first + 2 * second - (k->of->coding == EK_SIGNED2 ? 2 * n : 0);
}

/* Sum of the weights on a window's positions in the padding. */
static int64_t border_sum(const constants *k, int32_t channel, ek_overlap rows, ek_overlap columns) {
    const int32_t h = k->of->kernel_h, w = k->of->kernel_w;
    int64_t sum = 0;
    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++)
            if (y < rows.before || y >= h - rows.after || x < columns.before || x >= w - columns.after)
                sum += sum_of(k, channel, ((int64_t)y * w + x) * k->in_c, k->in_c);
    return sum;
}

/* Bits in the padding are minus ones; what they would have added to twice the sum is taken out. */
static int32_t constant2_of(const constants *k, int32_t channel, ek_overlap rows, ek_overlap columns) {
    int64_t constant2 = k->terms * k->pairs;
    if (k->offset != 0) constant2 += k->offset * sum_of(k, channel, 0, k->terms);
    if ((rows.before | rows.after | columns.before | columns.after) != 0)
        constant2 += 2 * border_sum(k, channel, rows, columns);
    return (int32_t)constant2;
}

static int64_t floor_divided(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* The largest Q at which the sum still reaches threshold `level`; kernels of bits take from -1, never, on. */
static int32_t limit_of(const constants *k, const ek_linear_step *step, int32_t channel, int32_t level,
                        int32_t constant2) {
    const size_t at = (size_t)channel * (size_t)step->of.layer.to.levels + (size_t)level;
    const bool bits = step->family == EK_FAMILY_XNOR;
    const int32_t never = bits ? -1 : INT32_MIN;
    int32_t threshold;
    if (k->of->wide != 0) {
        memcpy(&threshold, k->thresholds + 4 * at, 4);
    } else {
        int16_t narrow;
        memcpy(&narrow, k->thresholds + 2 * at, 2);
        threshold = narrow == INT16_MIN ? INT32_MIN : narrow == INT16_MAX ? INT32_MAX : narrow;
    }
    if (threshold == INT32_MIN) return INT32_MAX;
    if (threshold == INT32_MAX) return never;
    const int64_t limit = floor_divided(constant2 - 2 * (int64_t)threshold, step->of.layer.to.gain2);
    return limit < never ? never : limit > INT32_MAX ? INT32_MAX : (int32_t)limit;
}

static void fill_class(const constants *k, ek_linear_step *step, int32_t class, ek_overlap rows, ek_overlap columns) {
    const ek_epilogue *to = &step->of.layer.to;
    const int32_t levels = to->levels, lines = levels > 0 ? levels : 1;
    int32_t *table = step->table + (size_t)class * (size_t)lines * (size_t)to->padded;
    for (int32_t c = 0; c < to->padded; c++) {
        const bool used = c < step->of.layer.out_c;
        const int32_t constant2 = used ? constant2_of(k, c, rows, columns) : 0;
        if (levels == 0) table[c] = constant2;
        for (int32_t level = 0; level < levels; level++)
            table[(size_t)level * (size_t)to->padded + (size_t)c] = used ? limit_of(k, step, c, level, constant2) : -1;
    }
}

static void fill_tables(const constants *k, const ek_plan_tensor *in, ek_linear_step *step) {
    const ek_plan_linear *of = k->of;
    const ek_window_layer *layer = &step->of.layer;
    const ek_overlap inside = {0, 0};
    memset(step->classes, 0, (size_t)ek_classes_bytes(step));
    if (step->row_classes * step->column_classes == 1) {
        const bool cut = has_classes(in, of, step->family);
        fill_class(k, step, 0, cut ? ek_overlap_of(0, of->stride_h, of->kernel_h, of->pad_top, in->h) : inside,
                   cut ? ek_overlap_of(0, of->stride_w, of->kernel_w, of->pad_left, in->w) : inside);
        return;
    }
    int32_t row_class = -1, column_class;
    ek_overlap rows = {-1, -1};
    for (int32_t y = 0; y < layer->out_h; y++) {
        const ek_overlap next = ek_overlap_of(y, of->stride_h, of->kernel_h, of->pad_top, in->h);
        const bool first = next.before != rows.before || next.after != rows.after;
        row_class += first;
        rows = next;
        step->classes[y] = (uint16_t)(row_class * step->column_classes);
        if (!first) continue;
        column_class = -1;
        ek_overlap columns = {-1, -1};
        for (int32_t x = 0; x < layer->out_w; x++) {
            const ek_overlap beside = ek_overlap_of(x, of->stride_w, of->kernel_w, of->pad_left, in->w);
            const bool another = beside.before != columns.before || beside.after != columns.after;
            column_class += another;
            columns = beside;
            step->classes[layer->out_h + x] = (uint16_t)column_class;
            if (another) fill_class(k, step, step->classes[y] + column_class, rows, columns);
        }
    }
}

/* --- weights ---------------------------------------------------------------------------------------------------- */

/* SIGNED2 as three planes of weights 2, 1, 1: -2 = ---, -1 = -+-, 0 = -++, 1 = +-+ (halved). */
static void three_planes(const constants *k, int32_t out_c, uint32_t *to) {
    const size_t words = (size_t)(k->terms + 31) / 32;
    const uint32_t *from = (const void *)k->weights;
    for (int32_t c = 0; c < out_c; c++, from += 2 * words, to += 3 * words)
        for (size_t i = 0; i < words; i++) {
            const uint32_t b0 = from[i], b1 = from[words + i];
            to[i] = b0 & b1;
            to[words + i] = b0 ^ b1;
            to[2 * words + i] = b1;
        }
}

static void small_integers(const constants *k, int32_t out_c, int8_t *to) {
    const int64_t words = (k->terms + 31) / 32;
    const int coding = k->of->coding;
    const int first = coding == EK_BIPOLAR ? 2 : 1, second = coding == EK_TERNARY ? 1 : 2;
    const int least = coding == EK_SIGNED2 ? -2 : coding == EK_UNSIGNED2 ? 0 : -1;
    const bool one = coding == EK_BIPOLAR;
    for (int32_t c = 0; c < out_c; c++) {
        const unsigned char *row = k->weights + c * k->row_bytes;
        const uint32_t *plane = (const void *)row;
        if (coding == EK_INTEGER8) memcpy(to, row, (size_t)k->terms);
        else
            for (int64_t i = 0; i < k->terms; i++) {
                const int b0 = (int)(plane[i / 32] >> i % 32 & 1);
                const int b1 = one ? 0 : (int)(plane[words + i / 32] >> i % 32 & 1);
                to[i] = (int8_t)(least + b0 * first + b1 * second);
            }
        to += k->terms;
    }
}

static void bind_weights(const constants *k, ek_linear_step *step, void *rows) {
    const int32_t out_c = step->of.layer.out_c;
    const void *from = k->weights;
    if (step->family == EK_FAMILY_DOT8) {
        if (step->rows_size != 0) small_integers(k, out_c, rows);
        step->kernel.dot8->pack(&step->of.dot8, step->rows_size != 0 ? rows : from, step->packed);
        step->of.dot8.packed = step->packed;
        return;
    }
    const bool packs = step->kernel.xnor->pack_size(&step->of.xnor) != 0;
    if (k->of->coding == EK_SIGNED2) {
        from = packs ? rows : step->packed;
        three_planes(k, out_c, packs ? rows : step->packed);
    }
    step->of.xnor.packed = packs ? step->packed : from;
    if (!packs) return;
    const ek_xnor_weights weights = {from};
    step->kernel.xnor->pack(&step->of.xnor, &weights, step->packed);
}

static constants constants_of(const ek_plan_view *plan, const ek_plan_operator *op, const ek_linear_step *step) {
    const ek_plan_tensor *in = ek_tensor_at(plan, op->in[0]);
    const ek_plan_linear *of = &op->of.linear;
    constants k = {
        .of = of,
        .weights = ek_span_at(plan, of->weights),
        .terms = ek_terms_of(of, in),
        .row_bytes = ek_row_bytes(of, ek_terms_of(of, in)),
        .in_c = in->c,
        .thresholds = ek_span_at(plan, of->thresholds),
    };
    if (step->family == EK_FAMILY_XNOR) {
        k.offset = activation_planes(in).offset;
        for (int32_t i = 0; i < step->of.xnor.passes; i++)
            k.pairs += step->of.layer.to.gain2 << step->of.xnor.pass[i].weight;
        k.pairs /= 2;
    } else {
        k.offset = -2 * (in->type == EK_BITS ? ek_lift_of(in->coding) : in->type == EK_I8 ? 128 : 0);
    }
    return k;
}

void ek_bind_linear(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, const ek_buffer *out,
                    ek_linear_step *step, void *rows) {
    const ek_plan_linear *of = &op->of.linear;
    const ek_plan_tensor *tensor = ek_tensor_at(plan, op->in[0]);
    const constants k = constants_of(plan, op, step);
    ek_window_layer *layer = &step->of.layer;
    ek_epilogue *to = &layer->to;
    fill_tables(&k, tensor, step);
    layer->class_of_row = step->classes;
    layer->class_of_column = step->classes + layer->out_h;
    if (of->epilogue == EK_THRESHOLDS) {
        to->bits = (void *)out->data;
        to->limits = step->table;
    } else {
        to->constant2 = step->table;
        if (of->epilogue == EK_SUMS) to->sums = (void *)out->data;
        else to->scaled = (void *)out->data;
        to->scale = ek_span_at(plan, of->scale);
        to->bias = ek_span_at(plan, of->bias);
    }
    const unsigned char *first = in->data - (uint64_t)of->pad_top * in->row - (uint64_t)of->pad_left * in->pixel;
    if (step->family == EK_FAMILY_XNOR) step->of.xnor.in = (const void *)first;
    else step->of.dot8.in = first;
    bind_weights(&k, step, rows);
}
