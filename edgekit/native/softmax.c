/* Softmax and its largest probability in float32, with nothing but sums, products and quotients rounded one by one: the
 * same bits on every machine. */
#include <string.h>

#include "executor.h"

/* e^x for x <= 0, not NaN; below e^-87, where float32 has no normal numbers, 0. x = n ln 2 + r with |r| <= ln(2) / 2
 * (Cody and Waite 1980, chapter 6: ln 2 in two parts, n times the first of which is exact); then e^r by its series. */
static float exponential(float x) {
    const float per_ln2 = 1.44269504f, ln2_first = 0.693359375f, ln2_second = -2.12194440e-4f;
    const float magic = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    union {
        int32_t bits;
        float value;
    } power;
    if (x < -87.0f) return 0.0f;
    const float scaled = x * per_ln2, moved = scaled + magic, n = moved - magic;
    const float without_first = x - n * ln2_first, r = without_first - n * ln2_second;
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    power.bits = ((int32_t)n + 127) << 23;
    return sum * power.value;
}

/* A sum whose rounding errors are carried along (Kahan 1965), so that it is as good for many values as for few. */
typedef struct {
    float sum, missing;
} careful;

static void careful_add(careful *to, float x) {
    const float wanted = x - to->missing, sum = to->sum + wanted;
    const float added = sum - to->sum;
    to->missing = added - wanted;
    to->sum = sum;
}

static const float *values_of(const ek_buffer *b) { return (const void *)b->data; }

static int64_t count_of(const ek_buffer *b) { return (int64_t)b->h * b->w * b->c; }

/* The largest; NaN where one of the values is a NaN, or the largest is infinite: no softmax is defined then. */
static float largest_of(const float *values, int64_t count) {
    float largest = values[0], any = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        if (values[i] > largest) largest = values[i];
        if (values[i] != values[i]) any = values[i];
    }
    return ek_one_nan(any != any ? any : largest - largest != 0.0f ? largest - largest : largest);
}

void ek_run_softmax(const ek_buffer *in, const ek_buffer *out) {
    const float *from = values_of(in);
    float *to = (void *)out->data;
    careful total = {0.0f, 0.0f};
    const int64_t count = count_of(in);
    const float largest = largest_of(from, count);
    if (largest != largest) {
        for (int64_t i = 0; i < count; i++) to[i] = largest;
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        to[i] = exponential(from[i] - largest);
        careful_add(&total, to[i]);
    }
    for (int64_t i = 0; i < count; i++) to[i] /= total.sum;
}

void ek_run_confidence(const ek_buffer *in, const ek_buffer *out) {
    const float *from = values_of(in);
    float *to = (void *)out->data;
    careful total = {0.0f, 0.0f};
    const int64_t count = count_of(in);
    const float largest = largest_of(from, count);
    for (int64_t i = 0; i < count && largest == largest; i++) careful_add(&total, exponential(from[i] - largest));
    *to = largest == largest ? 1.0f / total.sum : largest;
}
