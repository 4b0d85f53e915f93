/* Whether each operator of a plan makes sense: types, shapes, parameters, the numbers in its spans. */
#include <string.h>

#include "plan_check.h"

typedef struct {
    ek_check *check;
    const ek_plan_tensor *in, *out;
} site;

static bool need(const site *s, bool ok, const char *what, int64_t got) { return ek_need(s->check, ok, what, got); }

static bool is_whole(const ek_plan_tensor *t) { return t->type >= EK_BITS && t->type <= EK_I32; }

static bool same_shape(const ek_plan_tensor *a, const ek_plan_tensor *b) {
    return a->h == b->h && a->w == b->w && a->c == b->c;
}

static bool need_same_shape(const site *s) {
    return need(s, same_shape(s->in, s->out), "out must have the shape of the input", ek_count_of(s->out));
}

static bool need_type(const site *s, const ek_plan_tensor *t, bool ok, const char *what) {
    return need(s, ok, what, t->type);
}

static float float_at(const unsigned char *at) {
    float value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t int32_at(const unsigned char *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int64_t int64_at(const unsigned char *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static bool is_finite(float value) { return value - value == 0.0f; }

static const unsigned char *bytes_of(const site *s, ek_plan_span span) {
    return s->check->plan.bytes + span.offset;
}

/* float32 [count], all finite. */
static bool need_floats(const site *s, ek_plan_span span, int64_t count, const char *size, const char *finite) {
    if (!ek_need_span(s->check, span, count * 4, size)) return false;
    for (int64_t i = 0; i < count; i++)
        if (!need(s, is_finite(float_at(bytes_of(s, span) + 4 * i)), finite, i)) return false;
    return true;
}

/* Empty, or a bit for each channel with none past the end. */
static bool need_mask(const site *s, ek_plan_span span, const char *size, const char *end) {
    const int32_t c = s->out->c;
    if (span.size == 0) return ek_need_span(s->check, span, 0, size);
    if (!ek_need_span(s->check, span, (c + 7) / 8, size)) return false;
    return need(s, c % 8 == 0 || bytes_of(s, span)[c / 8] >> c % 8 == 0, end, c);
}

/* --- linear ----------------------------------------------------------------------------------------------------- */

static bool check_padding(const site *s, const ek_plan_linear *l) {
    const bool bipolar = s->in->type == EK_BITS && s->in->coding == EK_BIPOLAR;
    const int64_t h = (int64_t)s->in->h + l->pad_top + l->pad_bottom;
    const int64_t w = (int64_t)s->in->w + l->pad_left + l->pad_right;
    return need(s, l->pad == EK_PAD_ZERO || (bipolar && (l->pad == EK_PAD_MINUS || l->pad == EK_PAD_PLUS)),
                "pad must be zero, or minus or plus one on bipolar bits", l->pad) &&
           need(s, l->pad_top < l->kernel_h && l->pad_bottom < l->kernel_h && l->pad_left < l->kernel_w &&
                       l->pad_right < l->kernel_w,
                "padding must be smaller than the kernel", l->pad_top) &&
           need(s, h * w * s->in->c <= EK_PLAN_MAX_VALUES, "the padded input must have at most 2^28 values",
                h * w * s->in->c);
}

static bool check_linear_shape(const site *s, const ek_plan_linear *l) {
    const int64_t h = (int64_t)s->in->h + l->pad_top + l->pad_bottom;
    const int64_t w = (int64_t)s->in->w + l->pad_left + l->pad_right;
    if (!need(s, l->kernel_h >= 1 && l->kernel_h <= h && l->kernel_w >= 1 && l->kernel_w <= w,
              "the kernel must fit the padded input", l->kernel_h) ||
        !need(s, l->stride_h >= 1 && l->stride_w >= 1, "strides must be positive", 0) ||
        !need(s, ek_terms_of(l, s->in) <= EK_PLAN_MAX_TERMS, "terms of a sum must be at most 2^24",
              ek_terms_of(l, s->in)) ||
        !need(s, s->out->h == (h - l->kernel_h) / l->stride_h + 1, "out must have the height that the kernel gives",
              s->out->h) ||
        !need(s, s->out->w == (w - l->kernel_w) / l->stride_w + 1, "out must have the width that the kernel gives",
              s->out->w))
        return false;
    const int64_t rows = ek_classes_along(s->out->h, l->stride_h, l->kernel_h, l->pad_top, s->in->h);
    const int64_t columns = ek_classes_along(s->out->w, l->stride_w, l->kernel_w, l->pad_left, s->in->w);
    return need(s, rows * columns <= EK_MAX_CLASSES, "windows must have at most 4096 different borders",
                rows * columns);
}

/* Bits past a plane's end are 0, and a ternary weight's second bit is set only where its first is. */
static bool check_weight_planes(const site *s, const ek_plan_linear *l, int64_t terms) {
    const int64_t words = (terms + 31) / 32;
    const uint32_t past = terms % 32 == 0 ? 0 : UINT32_MAX << terms % 32;
    const int32_t planes = ek_planes_of(l->coding);
    const uint32_t *at = (const void *)bytes_of(s, l->weights);
    for (int32_t row = 0; row < s->out->c; row++) {
        if (l->coding == EK_TERNARY)
            for (int64_t i = 0; i < words; i++)
                if (!need(s, (at[words + i] & ~at[i]) == 0, "ternary weights must be thermometer codes", row))
                    return false;
        for (int32_t plane = 0; plane < planes; plane++, at += words)
            if (!need(s, (at[words - 1] & past) == 0, "weight bits past a row's end must be 0", row)) return false;
    }
    return true;
}

/* Largest sum of one row's |weights|; -1 (and the reason) where a row's padding is not 0. */
static int64_t largest_row(const site *s, const ek_plan_linear *l, int64_t terms) {
    if (l->coding != EK_INTEGER8) return terms * ek_largest_of(EK_BITS, l->coding);
    const int64_t row_bytes = ek_row_bytes(l, terms);
    const unsigned char *at = bytes_of(s, l->weights);
    int64_t largest = 0;
    for (int32_t row = 0; row < s->out->c; row++, at += row_bytes) {
        int64_t sum = 0;
        for (int64_t i = 0; i < terms; i++) sum += at[i] < 128 ? at[i] : 256 - at[i];
        for (int64_t i = terms; i < row_bytes; i++)
            if (!need(s, at[i] == 0, "weight bytes past a row's end must be 0", row)) return -1;
        if (sum > largest) largest = sum;
    }
    return largest;
}

static bool check_weights(const site *s, const ek_plan_linear *l) {
    const int64_t terms = ek_terms_of(l, s->in);
    if (!need(s, l->coding >= EK_BIPOLAR && l->coding <= EK_INTEGER8, "coding of weights must be 1 to 5", l->coding) ||
        !ek_need_span(s->check, l->weights, s->out->c * ek_row_bytes(l, terms), "weights must have the kernel's size"))
        return false;
    if (l->coding != EK_INTEGER8 && !check_weight_planes(s, l, terms)) return false;
    const int64_t row = largest_row(s, l, terms);
    const int64_t bound = row * ek_largest_of(s->in->type, s->in->coding);
    return row >= 0 && need(s, bound < EK_SUM_BOUND, "sums must stay below 2^29", bound);
}

static int32_t threshold_at(const unsigned char *at, bool wide) {
    int16_t value;
    if (wide) return int32_at(at);
    memcpy(&value, at, sizeof value);
    return value;
}

static bool check_linear_thresholds(const site *s, const ek_plan_linear *l) {
    if (!need_type(s, s->out, s->out->type == EK_BITS, "out must be bits where there are thresholds") ||
        !need(s, l->wide <= 1, "wide must be 0 or 1", l->wide))
        return false;
    const int64_t each = l->wide ? 4 : 2, levels = ek_levels_of(s->out->coding) - 1;
    if (!ek_need_span(s->check, l->thresholds, s->out->c * levels * each, "thresholds must be [c][levels - 1]"))
        return false;
    const unsigned char *at = bytes_of(s, l->thresholds);
    for (int32_t c = 0; c < s->out->c; c++, at += levels * each)
        for (int64_t i = 1; i < levels; i++)
            if (!need(s, threshold_at(at + (i - 1) * each, l->wide) <= threshold_at(at + i * each, l->wide),
                      "thresholds must rise within a channel", c))
                return false;
    return true;
}

static bool check_linear(const site *s, const ek_plan_linear *l) {
    const bool in_ok = s->in->type == EK_BITS || s->in->type == EK_U8 || s->in->type == EK_I8;
    if (!need_type(s, s->in, in_ok, "the input must be bits, U8 or I8") || !check_padding(s, l) ||
        !check_linear_shape(s, l) || !check_weights(s, l))
        return false;
    const ek_plan_span empty = {0, 0};
    const bool cuts = l->epilogue == EK_THRESHOLDS, scales = l->epilogue == EK_SCALED;
    if (!need(s, l->epilogue <= EK_SCALED, "epilogue must be 0 to 2", l->epilogue) ||
        !need(s, cuts || memcmp(&l->thresholds, &empty, sizeof empty) == 0, "thresholds must be empty", l->epilogue) ||
        !need(s, scales || memcmp(&l->scale, &empty, sizeof empty) == 0, "scale must be empty", l->epilogue) ||
        !need(s, scales || memcmp(&l->bias, &empty, sizeof empty) == 0, "bias must be empty", l->epilogue) ||
        !need(s, cuts || l->wide == 0, "wide must be 0", l->wide))
        return false;
    if (cuts) return check_linear_thresholds(s, l);
    if (!scales) return need_type(s, s->out, s->out->type == EK_I32, "out must be I32 where sums are given");
    return need_type(s, s->out, s->out->type == EK_F32, "out must be F32 where sums are scaled") &&
           need_floats(s, l->scale, s->out->c, "scale must be [c]", "scale must be finite, is not at index") &&
           need_floats(s, l->bias, s->out->c, "bias must be [c]", "bias must be finite, is not at index");
}

/* --- the others ------------------------------------------------------------------------------------------------- */

static bool check_quantize(const site *s, const ek_plan_quantize *q) {
    const int32_t low = s->out->type == EK_U8 ? 0 : -128;
    return need_type(s, s->in, s->in->type == EK_F32, "the input must be F32") &&
           need_type(s, s->out, s->out->type == EK_U8 || s->out->type == EK_I8, "out must be U8 or I8") &&
           need_same_shape(s) && need(s, is_finite(q->scale) && q->scale > 0, "scale must be positive and finite", 0) &&
           need(s, q->zero_point >= low && q->zero_point <= low + 255, "zero_point must be a code of out",
                q->zero_point);
}

/* Thresholds of one channel stand in order and are numbers. */
static bool in_order(const unsigned char *at, int64_t count, bool floats, bool falling) {
    for (int64_t i = 0; i < count; i++) {
        const float x = float_at(at + 4 * i);
        if (floats && x != x) return false;
        if (i == 0) continue;
        const float before = float_at(at + 4 * (i - 1));
        const int32_t n = int32_at(at + 4 * i), n_before = int32_at(at + 4 * (i - 1));
        const bool rises = floats ? before <= x : n_before <= n, falls = floats ? before >= x : n_before >= n;
        if (!(falling ? falls : rises)) return false;
    }
    return true;
}

static bool check_threshold(const site *s, const ek_plan_threshold *t) {
    const int type = s->out->type;
    if (!need_type(s, s->in, s->in->type != EK_BITS, "the input must not be bits") ||
        !need_type(s, s->out, type <= EK_I8, "out must be bits, U8 or I8") || !need_same_shape(s))
        return false;
    const int64_t last = (int64_t)t->first + t->levels - 1;
    const int32_t low = type == EK_I8 ? -128 : 0, high = type == EK_I8 ? 127 : 255;
    if (type == EK_BITS
            ? !need(s, t->levels == (uint32_t)ek_levels_of(s->out->coding), "levels must be those of out", t->levels) ||
                  !need(s, t->first == 0, "first must be 0 for bits", t->first)
            : !need(s, t->levels >= 2 && t->levels <= EK_PLAN_MAX_LEVELS, "levels must be 2 to 256", t->levels) ||
                  !need(s, t->first >= low && last <= high, "codes must be those of out", last))
        return false;
    const int64_t each = (int64_t)t->levels - 1;
    if (!ek_need_span(s->check, t->thresholds, s->out->c * each * 4, "thresholds must be [c][levels - 1]") ||
        !need_mask(s, t->falling, "falling must be a bit for each channel, or empty", "falling must end with c"))
        return false;
    const unsigned char *at = bytes_of(s, t->thresholds), *mask = ek_span_at(&s->check->plan, t->falling);
    for (int32_t c = 0; c < s->out->c; c++, at += each * 4) {
        const bool falling = mask != NULL && (mask[c / 8] >> c % 8 & 1) != 0;
        if (!need(s, in_order(at, each, s->in->type == EK_F32, falling), "thresholds must be numbers in order", c))
            return false;
    }
    return true;
}

static bool check_window(const site *s, const ek_plan_window *w, bool pool) {
    if (!need(s, w->kernel_h >= 1 && w->kernel_h <= s->in->h && w->kernel_w >= 1 && w->kernel_w <= s->in->w,
              "the window must fit the input", w->kernel_h) ||
        !need(s, w->stride_h >= 1 && w->stride_w >= 1, "strides must be positive", 0) ||
        !need(s, s->out->h == (s->in->h - w->kernel_h) / w->stride_h + 1, "out must have the height that windows give",
              s->out->h) ||
        !need(s, s->out->w == (s->in->w - w->kernel_w) / w->stride_w + 1, "out must have the width that windows give",
              s->out->w) ||
        !need(s, s->out->c == s->in->c, "out must have the input's channels", s->out->c))
        return false;
    if (pool)
        return need_type(s, s->out, s->out->type == s->in->type && s->out->coding == s->in->coding,
                         "out must be of the input's type and coding") &&
               need_mask(s, w->smallest, "smallest must be a bit for each channel, or empty",
                         "smallest must end with c");
    const int64_t most = (int64_t)w->kernel_h * w->kernel_w * ek_largest_of(s->in->type, s->in->coding);
    return need_type(s, s->in, is_whole(s->in), "the input must not be F32") &&
           need_type(s, s->out, s->out->type == EK_I32, "out must be I32") &&
           ek_need_span(s->check, w->smallest, 0, "smallest must be empty") &&
           need(s, s->in->type == EK_I32 || most <= INT32_MAX, "sums must fit 32 bits", most);
}

static bool check_add(const site *s, const ek_plan_operator *op) {
    const ek_plan_tensor *second = ek_tensor_at(&s->check->plan, op->in[1]);
    const bool floats = s->in->type == EK_F32;
    return need_same_shape(s) &&
           need(s, same_shape(s->in, second), "both inputs must have one shape", ek_count_of(second)) &&
           need_type(s, second, is_whole(second) == !floats, "both inputs must be F32, or neither") &&
           need_type(s, s->out, s->out->type == (floats ? EK_F32 : EK_I32), "out must be I32, or F32 for F32");
}

static bool check_affine(const site *s, const ek_plan_affine *a) {
    return need_type(s, s->in, is_whole(s->in), "the input must not be F32") &&
           need_type(s, s->out, s->out->type == EK_F32, "out must be F32") && need_same_shape(s) &&
           need_floats(s, a->scale, s->out->c, "scale must be [c]", "scale must be finite, is not at index") &&
           need_floats(s, a->bias, s->out->c, "bias must be [c]", "bias must be finite, is not at index");
}

static bool check_requantize(const site *s, const ek_plan_requantize *r) {
    const int type = s->out->type;
    const int64_t low = type == EK_U8 ? 0 : type == EK_I8 ? -128 : INT32_MIN;
    const int64_t high = type == EK_U8 ? 255 : type == EK_I8 ? 127 : INT32_MAX;
    if (!need_type(s, s->in, s->in->type == EK_I32, "the input must be I32") ||
        !need_type(s, s->out, type == EK_U8 || type == EK_I8 || type == EK_I32, "out must be U8, I8 or I32") ||
        !need_same_shape(s) ||
        !need(s, r->low >= low && r->low <= r->high && r->high <= high, "low and high must be numbers of out",
              r->low) ||
        !ek_need_span(s->check, r->multiplier, s->out->c * INT64_C(4), "multiplier must be [c]") ||
        !ek_need_span(s->check, r->addend, s->out->c * INT64_C(8), "addend must be [c]") ||
        !ek_need_span(s->check, r->shift, s->out->c, "shift must be [c]"))
        return false;
    const int64_t bound = INT64_C(1) << 62; /* a product is at most that: with the addend below it, 64 bits hold both */
    for (int32_t c = 0; c < s->out->c; c++) {
        const int64_t addend = int64_at(bytes_of(s, r->addend) + 8 * (size_t)c);
        const int shift = bytes_of(s, r->shift)[c];
        if (!need(s, addend > -bound && addend < bound, "addend must be below 2^62", addend) ||
            !need(s, shift <= 62, "shift must be 0 to 62", shift))
            return false;
    }
    return true;
}

static bool check_float_to_float(const site *s) {
    return need_type(s, s->in, s->in->type == EK_F32, "the input must be F32") &&
           need_type(s, s->out, s->out->type == EK_F32, "out must be F32");
}

bool ek_check_operator(ek_check *check, const ek_plan_operator *op) {
    const site s = {check, ek_tensor_at(&check->plan, op->in[0]), ek_tensor_at(&check->plan, op->out)};
    switch (op->kind) {
        case EK_QUANTIZE: return check_quantize(&s, &op->of.quantize);
        case EK_LINEAR: return check_linear(&s, &op->of.linear);
        case EK_THRESHOLD: return check_threshold(&s, &op->of.threshold);
        case EK_POOL: return check_window(&s, &op->of.window, true);
        case EK_SUM: return check_window(&s, &op->of.window, false);
        case EK_ADD: return check_add(&s, op);
        case EK_AFFINE: return check_affine(&s, &op->of.affine);
        case EK_REQUANTIZE: return check_requantize(&s, &op->of.requantize);
        case EK_SOFTMAX: return check_float_to_float(&s) && need_same_shape(&s);
        case EK_CONFIDENCE:
            return check_float_to_float(&s) &&
                   need(&s, ek_count_of(s.out) == 1, "out must be one value", ek_count_of(s.out));
        case EK_COPY:
            return need_type(&s, s.out, s.out->type == s.in->type && s.out->coding == s.in->coding,
                             "out must be of the input's type and coding") &&
                   need(&s, ek_count_of(s.out) == ek_count_of(s.in), "out must have as many values",
                        ek_count_of(s.out));
        default: return false;
    }
}
