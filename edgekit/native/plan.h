/* The plan file, version 1: what a part of backend "native" or "overlay" holds. docs/plan.md explains it.
 *
 * One network (or one stage of it) as a list of operators over tensors. Little-endian everywhere; every offset counts
 * from the file's first byte and is a multiple of 4; a reader checks all of it before it uses any (plan_check.c).
 * plan.py holds the same numbers for Python; tests/native/test_plan_format.py compares the two.
 *
 *     ek_plan_header | tensors | operators | names and data
 *
 * A tensor has h x w x c values, channels last, batch 1; a vector has h = w = 1. An operator's inputs stand before it:
 * they are inputs of the plan or made by an earlier operator, and each tensor is made once.
 */
#ifndef EDGEKIT_PLAN_H
#define EDGEKIT_PLAN_H

#include <stdint.h>

#define EK_PLAN_MAGIC UINT32_C(0x4c504b45) /* "EKPL" */
#define EK_PLAN_MAJOR 1                    /* a reader refuses any other */
#define EK_PLAN_MINOR 0                    /* a reader ignores what a greater one adds behind the known fields */

/* Bounds that keep every product of sizes within 63 bits and every sum within 32. */
#define EK_PLAN_MAX_TENSORS 4096
#define EK_PLAN_MAX_OPERATORS 4096
#define EK_PLAN_MAX_SIDE 65535     /* of a height, a width or a kernel */
#define EK_PLAN_MAX_CHANNELS 1048576
#define EK_PLAN_MAX_VALUES (1 << 28) /* of one tensor: h * w * c */
#define EK_PLAN_MAX_TERMS (1 << 24)  /* products in one sum (kernel height * width * input channels) */
#define EK_PLAN_MAX_LEVELS 256       /* codes that a threshold operator can tell apart */

typedef struct {
    uint32_t offset; /* 0 where size is 0 */
    uint32_t size;   /* bytes */
} ek_plan_span;

typedef struct {
    uint32_t magic;
    uint16_t major, minor;
    uint32_t size;            /* of the whole file */
    uint32_t crc32;           /* of all that follows this field (zlib's polynomial) */
    uint32_t tensors;         /* how many */
    uint32_t operators;       /* how many */
    uint32_t tensor_offset;   /* of the first ek_plan_tensor; each takes tensor_size bytes */
    uint32_t operator_offset; /* of the first ek_plan_operator; each takes operator_size bytes */
    uint16_t tensor_size, operator_size;
    uint32_t inputs, outputs; /* how many tensors have that flag */
    ek_plan_span design;      /* an overlay's folding as UTF-8 JSON; empty where there is none */
} ek_plan_header;

/* How values are held. Bits are planes of one bit per value: a value's code is its bits, plane 0 the least. */
enum {
    EK_BITS = 1, /* see ek_coding */
    EK_U8 = 2,
    EK_I8 = 3,
    EK_I32 = 4,
    EK_F32 = 5,
};

/* What the planes of bits mean: value = the sum of the set planes' weights + offset. */
enum {
    EK_BIPOLAR = 1,   /* 1 plane:  2 b0 - 1           -1, 1 */
    EK_UNSIGNED2 = 2, /* 2 planes: b0 + 2 b1           0, 1, 2, 3 */
    EK_SIGNED2 = 3,   /* 2 planes: b0 + 2 b1 - 2      -2, -1, 0, 1 */
    EK_TERNARY = 4,   /* 2 planes: b0 + b1 - 1        -1, 0, 1; b1 is set only where b0 is */
    EK_INTEGER8 = 5,  /* weights only: one int8 each */
};

enum { EK_TENSOR_INPUT = 1, EK_TENSOR_OUTPUT = 2, EK_TENSOR_CHANNELS_FIRST = 4 /* outside: c, h, w; inputs only */ };

/* Outside the plan a tensor is an array without gaps: h, w, c values of its type, or for bits h, w, planes and
 * ceil(c/8) bytes, channel k in bit k % 8 of byte k / 8. */
typedef struct {
    uint8_t type;
    uint8_t coding; /* of EK_BITS; 0 otherwise */
    uint8_t flags;
    uint8_t reserved; /* 0 */
    int32_t h, w, c;
    ek_plan_span name; /* UTF-8; of inputs and outputs */
} ek_plan_tensor;

enum {
    EK_QUANTIZE = 1,   /* F32 -> U8/I8: clamp(round_half_to_even(x / scale) + zero_point); NaN becomes zero_point */
    EK_LINEAR = 2,     /* convolution or dense layer, see ek_plan_linear */
    EK_THRESHOLD = 3,  /* any but BITS -> BITS/U8/I8: code = how many thresholds x reaches (+ first, for U8/I8) */
    EK_POOL = 4,       /* largest (smallest where the channel's mask bit is set) code of a window: BITS/U8/I8/I32/F32 */
    EK_SUM = 5,        /* sum of a window's values: BITS/U8/I8/I32 -> I32 (an average, not yet divided) */
    EK_ADD = 6,        /* in[0] + in[1], equal h, w, c: BITS/U8/I8/I32 -> I32, or F32 and F32 -> F32 */
    EK_AFFINE = 7,     /* BITS/U8/I8/I32 -> F32: (float)x * scale[c] + bias[c], product and sum rounded one by one */
    EK_REQUANTIZE = 8, /* I32 -> U8/I8/I32: clamp((x * multiplier[c] + addend[c]) >> shift[c]), in 64 bits */
    EK_SOFTMAX = 9,    /* F32 -> F32, over all values */
    EK_CONFIDENCE = 10, /* F32 -> F32 [1]: the largest softmax probability */
    EK_COPY = 11,      /* the same values, h * w * c of them in the same order, in another shape */
};

/* What a padded position holds. ZERO on bipolar bits has no code: what it would have added is taken out of the sums. */
enum { EK_PAD_MINUS = 0, EK_PAD_PLUS = 1, EK_PAD_ZERO = 2 };

/* What a linear operator gives; thresholds only rise within a channel. */
enum {
    EK_SUMS = 0,       /* I32: the sums of products */
    EK_THRESHOLDS = 1, /* BITS: code = how many of the channel's thresholds the sum reaches (sum >= threshold) */
    EK_SCALED = 2,     /* F32: (float)sum * scale[c] + bias[c], as EK_AFFINE */
};

/* Convolution (cross-correlation) of an h x w x c tensor; a dense layer is one whose kernel covers the whole tensor.
 *
 * Sums are over *values* (see ek_coding; U8 and I8 are their own values). Weights: out_c rows; within a row
 * kernel_h, kernel_w, c in this order. Each plane of a row is padded to 32 bits, planes one after the other:
 * row = planes * ceil(kernel_h * kernel_w * c / 32) words, term k in bit k % 32 of word k / 32. EK_INTEGER8: one int8
 * each, a row padded with zeros to 4 bytes. Bits past the end are 0.
 */
typedef struct {
    uint16_t kernel_h, kernel_w, stride_h, stride_w;
    uint16_t pad_top, pad_left, pad_bottom, pad_right;
    uint8_t pad;         /* EK_PAD_*; MINUS and PLUS on bipolar bits only */
    uint8_t coding;      /* of the weights */
    uint8_t epilogue;    /* EK_SUMS, EK_THRESHOLDS, EK_SCALED */
    uint8_t wide;        /* thresholds are int32, else int16 */
    ek_plan_span weights;
    ek_plan_span thresholds; /* [out_c][levels - 1]; a smallest integer is always reached, a largest never */
    ek_plan_span scale, bias; /* float32 [out_c] */
} ek_plan_linear;

/* scale: float32, > 0 and finite. */
typedef struct {
    float scale;
    int32_t zero_point;
} ek_plan_quantize;

/* thresholds: [c][levels - 1], int32, or float32 where the input is F32 (never NaN). A channel whose `falling` bit is
 * set counts x <= threshold, and its thresholds only fall. levels: 2 for BIPOLAR, 3 TERNARY, 4, or up to 256. */
typedef struct {
    uint32_t levels;
    int32_t first; /* of U8/I8: the code when no threshold is reached */
    ek_plan_span thresholds;
    ek_plan_span falling; /* ceil(c/8) bytes, or empty: all rise */
} ek_plan_threshold;

/* Window of a pool or a sum; windows lie inside the tensor. smallest: ceil(c/8) bytes, or empty; of a pool. */
typedef struct {
    uint16_t kernel_h, kernel_w, stride_h, stride_w;
    ek_plan_span smallest;
} ek_plan_window;

typedef struct {
    ek_plan_span scale, bias; /* float32 [c] */
} ek_plan_affine;

/* multiplier: int32 [c]; addend: int64 [c]; shift: uint8 [c], 0 to 62. */
typedef struct {
    int32_t low, high;
    ek_plan_span multiplier, addend, shift;
} ek_plan_requantize;

typedef struct {
    uint16_t kind;
    uint16_t reserved; /* 0 */
    int32_t in[2];     /* tensors; -1: none */
    int32_t out;
    union {
        ek_plan_quantize quantize;
        ek_plan_linear linear;
        ek_plan_threshold threshold;
        ek_plan_window window;
        ek_plan_affine affine;
        ek_plan_requantize requantize;
        uint8_t bytes[64]; /* what follows is 0 */
    } of;
} ek_plan_operator;

_Static_assert(sizeof(ek_plan_header) == 52, "the file's layout");
_Static_assert(sizeof(ek_plan_tensor) == 24, "the file's layout");
_Static_assert(sizeof(ek_plan_operator) == 80, "the file's layout");

#endif
