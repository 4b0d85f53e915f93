/* Inside the library: what the executor's files share. A step is one operator with its buffers and tables.
 *
 * Buffers hold a tensor as [top + h + bottom][left + w + right][a pixel's bytes]; the border is there for the padding
 * of the linear operators that read it. A pixel of bits is [planes][words], one of U8, I8, I32, F32 its c values. I8 is
 * held with 128 added (the byte's top bit flipped), so that bytes have one order and one kernel.
 */
#ifndef EDGEKIT_EXECUTOR_H
#define EDGEKIT_EXECUTOR_H

#include "edgekit_native.h"
#include "linear.h"
#include "plan_read.h"

enum { EK_CHUNK = 64 }; /* channels that the operators without kernels take at a time; a word of bits */

typedef struct {
    uint8_t type, coding; /* of plan.h; bits that are a byte's planes have coding EK_BYTE_PLANES */
    uint8_t planes;
    uint8_t fill;         /* of the border: a byte's value, or for bits which planes are set */
    int32_t h, w, c;
    int32_t words;        /* of one plane of bits */
    int32_t top, left, bottom, right;
    uint64_t row, pixel;  /* bytes from one to the next */
    uint64_t size;        /* bytes, border included */
    uint64_t place;       /* in the workspace, see layout.c */
    unsigned char *data;  /* the interior's first pixel */
} ek_buffer;

enum { EK_BYTE_PLANES = 6 };

/* How a linear operator's kernel comes by its input. */
enum {
    EK_DIRECT = 0, /* as the tensor is held */
    EK_COPIED = 1, /* copied: another operator wants another border */
    EK_PLANES = 2, /* bytes as eight planes of bits */
    EK_BYTES = 3,  /* bits as bytes: the value plus ek_lift_of */
};

typedef struct {
    int family; /* EK_FAMILY_XNOR or EK_FAMILY_DOT8 */
    int staging;
    union {
        const ek_xnor_kernel *xnor;
        const ek_dot8_kernel *dot8;
    } kernel;
    union {
        ek_window_layer layer; /* what both begin with */
        ek_xnor_layer xnor;
        ek_dot8_layer dot8;
    } of;
    int32_t row_classes, column_classes;
    /* In the arena. */
    uint16_t *classes; /* [out_h] then [out_w] */
    int32_t *table;    /* limits or constant2 */
    void *packed;      /* NULL: the plan's own rows */
    uint64_t packed_size;
    uint64_t rows_size; /* of weights brought into the kernel's form before they are packed; 0: the plan's are in it */
    uint64_t scratch_size, scratch_place;
    void *scratch;
    int32_t straight;        /* the plan's output that is written where the caller wants it; -1: none, it is copied */
    unsigned char *own_data; /* of the output's buffer, for a caller's array that is not aligned */
} ek_linear_step;

typedef struct {
    const ek_plan_operator *op;
    ek_buffer staged; /* size 0 where the kernel reads the tensor directly */
    ek_linear_step linear;
} ek_step;

struct ek_plan {
    ek_plan_view file;
    uint32_t options;
    ek_buffer *buffers; /* one for each tensor */
    ek_step *steps;     /* one for each operator */
};

static inline uint64_t *ek_words_at(const ek_buffer *b, int32_t y, int32_t x) {
    return (void *)(b->data + (uint64_t)y * b->row + (uint64_t)x * b->pixel);
}

static inline unsigned char *ek_pixel_at(const ek_buffer *b, int32_t y, int32_t x) {
    return b->data + (uint64_t)y * b->row + (uint64_t)x * b->pixel;
}

/* Bits of a plane's last word that are used. */
static inline uint64_t ek_last_word(int32_t c) { return c % 64 == 0 ? UINT64_MAX : (UINT64_C(1) << c % 64) - 1; }

/* What NaN is written as: hardware differs in its sign and payload. */
static inline float ek_one_nan(float x) {
    union {
        uint32_t bits;
        float value;
    } nan = {UINT32_C(0x7fc00000)};
    return x != x ? nan.value : x;
}

/* --- buffers.c: borders, the outside's layout, copies of another layout */
void ek_fill_border(const ek_buffer *b);
void ek_bring_in(const ek_buffer *b, const ek_plan_tensor *tensor, const void *from);
void ek_hand_out(const ek_buffer *b, void *to);
void ek_stage(const ek_step *step, const ek_buffer *from);
void ek_read_codes(const ek_buffer *b, int32_t *codes);
/* Channels from..from+n of a pixel (n <= EK_CHUNK, from a multiple of it) as values; not of F32. */
void ek_load_values(const ek_buffer *b, const unsigned char *pixel, int32_t from, int32_t n, int32_t *values);

/* --- layout.c: the arena */
int ek_fill_of(const ek_plan_tensor *in, const ek_plan_linear *linear);
void ek_describe(const ek_plan_view *plan, int32_t tensor, ek_buffer *buffer);
/* Bytes of the arena; with opened, its buffers and steps are filled and bound to the arena it begins. 0: no kernels of
 * that name, or more than can be addressed. */
uint64_t ek_lay_out(const ek_plan_view *plan, const char *kernels, uint32_t options, ek_plan *opened);

/* --- linear.c: codings become tables and passes */
int ek_staging_of(const ek_plan_view *plan, const ek_plan_operator *op, int *family);
int32_t ek_lift_of(int coding);
/* Geometry, kernel and sizes; false: no kernel of that name. */
bool ek_prepare_linear(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, const ek_buffer *out,
                       const char *kernels, ek_linear_step *step);
uint64_t ek_classes_bytes(const ek_linear_step *step);
uint64_t ek_table_bytes(const ek_linear_step *step);
/* Pointers, tables and packed weights. rows: rows_size bytes to work in. */
void ek_bind_linear(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in, const ek_buffer *out,
                    ek_linear_step *step, void *rows);

/* --- pool.c, elementwise.c, softmax.c, copy.c: the operators without kernels */
void ek_run_pool(const ek_plan_window *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out);
void ek_run_sum(const ek_plan_window *of, const ek_buffer *in, const ek_buffer *out);
void ek_run_quantize(const ek_plan_quantize *of, const ek_buffer *in, const ek_buffer *out);
void ek_run_threshold(const ek_plan_threshold *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out);
void ek_run_add(const ek_buffer *a, const ek_buffer *b, const ek_buffer *out);
void ek_run_affine(const ek_plan_affine *of, const ek_plan_view *plan, const ek_buffer *in, const ek_buffer *out);
void ek_run_requantize(const ek_plan_requantize *of, const ek_plan_view *plan, const ek_buffer *in,
                       const ek_buffer *out);
void ek_run_softmax(const ek_buffer *in, const ek_buffer *out);
void ek_run_confidence(const ek_buffer *in, const ek_buffer *out);
void ek_run_copy(const ek_buffer *in, const ek_buffer *out);

#endif
