/* Inside the library: records of a plan by index, and what follows from a record alone. Checks nothing. */
#ifndef EDGEKIT_PLAN_READ_H
#define EDGEKIT_PLAN_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plan.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "plans are read in place: little-endian machines only");

typedef struct {
    const unsigned char *bytes;
    const ek_plan_header *header;
} ek_plan_view;

static inline ek_plan_view ek_view_of(const void *plan) {
    return (ek_plan_view){.bytes = plan, .header = plan};
}

static inline const ek_plan_tensor *ek_tensor_at(const ek_plan_view *plan, int32_t index) {
    const size_t at = plan->header->tensor_offset + (size_t)index * plan->header->tensor_size;
    return (const void *)(plan->bytes + at);
}

static inline const ek_plan_operator *ek_operator_at(const ek_plan_view *plan, int32_t index) {
    const size_t at = plan->header->operator_offset + (size_t)index * plan->header->operator_size;
    return (const void *)(plan->bytes + at);
}

/* NULL where the span is empty. */
static inline const void *ek_span_at(const ek_plan_view *plan, ek_plan_span span) {
    return span.size == 0 ? NULL : plan->bytes + span.offset;
}

static inline int32_t ek_planes_of(int coding) { return coding == EK_BIPOLAR ? 1 : 2; }

/* Codes of a coding: one more than the thresholds that tell them apart. */
static inline int32_t ek_levels_of(int coding) {
    return coding == EK_BIPOLAR ? 2 : coding == EK_TERNARY ? 3 : 4;
}

/* Largest |value|. */
static inline int32_t ek_largest_of(int type, int coding) {
    if (type == EK_U8) return 255;
    if (type == EK_I8) return 128;
    return coding == EK_UNSIGNED2 ? 3 : coding == EK_SIGNED2 ? 2 : 1;
}

static inline int64_t ek_count_of(const ek_plan_tensor *tensor) { return (int64_t)tensor->h * tensor->w * tensor->c; }

static inline int64_t ek_terms_of(const ek_plan_linear *linear, const ek_plan_tensor *in) {
    return (int64_t)linear->kernel_h * linear->kernel_w * in->c;
}

static inline bool ek_has_padding(const ek_plan_linear *linear) {
    return (linear->pad_top | linear->pad_left | linear->pad_bottom | linear->pad_right) != 0;
}

/* Bytes of one weight row (out channel) in the file. */
static inline int64_t ek_row_bytes(const ek_plan_linear *linear, int64_t terms) {
    if (linear->coding == EK_INTEGER8) return (terms + 3) / 4 * 4;
    return ek_planes_of(linear->coding) * ((terms + 31) / 32) * 4;
}

/* Positions of a window's rows (or columns) that lie in the padding: the same for all outputs of one border class. */
typedef struct {
    int32_t before, after;
} ek_overlap;

static inline ek_overlap ek_overlap_of(int32_t output, int32_t stride, int32_t kernel, int32_t pad, int32_t size) {
    const int64_t first = (int64_t)output * stride - pad, behind = first + kernel - size;
    return (ek_overlap){
        .before = first < 0 ? (int32_t)-first : 0,
        .after = behind > 0 ? (int32_t)behind : 0,
    };
}

/* How many classes the outputs along one side fall into; neighbours of one class stand together. */
static inline int32_t ek_classes_along(int32_t outputs, int32_t stride, int32_t kernel, int32_t pad, int32_t size) {
    int32_t classes = 1;
    ek_overlap last = ek_overlap_of(0, stride, kernel, pad, size);
    for (int32_t i = 1; i < outputs; i++) {
        const ek_overlap next = ek_overlap_of(i, stride, kernel, pad, size);
        classes += next.before != last.before || next.after != last.after;
        last = next;
    }
    return classes;
}

#endif
