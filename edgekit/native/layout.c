/* The arena: the plan's structure, tables and packed weights, then a workspace in which tensors take the place of those
 * that nobody reads again.
 *
 * Sizes are found by the same walk that later lays everything out, so it needs no memory that grows with the plan: a
 * tensor goes to the first gap among those alive at that operator. Weights are prepared in the workspace before any
 * tensor is in it.
 */
#include <string.h>

#include "executor.h"
#include "kernels.h"

enum { ALIGNMENT = 64, MOST_ALIVE = 32, SLACK = 64 /* vectors may be loaded whole behind the last value */ };
#define APART (UINT64_C(1) << 63)

static uint64_t aligned(uint64_t size) { return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* --- what must outlive a run, one piece behind the other ---------------------------------------------------------- */

typedef struct {
    unsigned char *base; /* NULL: only counted */
    uint64_t used;
} persistent;

static void *take(persistent *from, uint64_t size) {
    void *found = from->base == NULL || size == 0 ? NULL : from->base + from->used;
    from->used += aligned(size);
    return found;
}

/* --- the workspace ---------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t at, end;
    int32_t last; /* operator that uses it last */
} block;

typedef struct {
    block alive[MOST_ALIVE]; /* by address */
    int32_t count;
    uint64_t peak;
    uint64_t apart; /* bytes of blocks with a place of their own, behind the peak */
} workspace;

static uint64_t place_apart(workspace *in, uint64_t size) {
    const uint64_t at = in->apart;
    in->apart += aligned(size);
    return at | APART;
}

/* First fit among what is alive; where too much is alive at once, a place of its own. */
static uint64_t place(workspace *in, uint64_t size, int32_t last) {
    if (size == 0) return 0;
    if (in->count == MOST_ALIVE) return place_apart(in, size);
    uint64_t at = 0;
    int32_t i = 0;
    for (; i < in->count && in->alive[i].at - at < aligned(size); i++) at = in->alive[i].end;
    for (int32_t j = in->count++; j > i; j--) in->alive[j] = in->alive[j - 1];
    in->alive[i] = (block){at, at + aligned(size), last};
    if (in->alive[i].end > in->peak) in->peak = in->alive[i].end;
    return at;
}

static void expire(workspace *in, int32_t now) {
    int32_t kept = 0;
    for (int32_t i = 0; i < in->count; i++)
        if (in->alive[i].last >= now) in->alive[kept++] = in->alive[i];
    in->count = kept;
}

/* --- a tensor's buffer ------------------------------------------------------------------------------------------ */

/* What stands for a linear operator's padding: a byte, or which planes are set. */
int ek_fill_of(const ek_plan_tensor *in, const ek_plan_linear *of) {
    if (in->type == EK_U8) return 0;
    if (in->type == EK_I8) return 128;
    switch (in->coding) {
        case EK_BIPOLAR: return of->pad == EK_PAD_PLUS ? 1 : 0;
        case EK_SIGNED2: return 2;
        case EK_TERNARY: return 1;
        default: return 0;
    }
}

/* The same for bits that are staged as bytes: the padding's value with the coding's lift. */
static int lifted_fill_of(const ek_plan_tensor *in, const ek_plan_linear *of) {
    const int value = in->coding != EK_BIPOLAR || of->pad == EK_PAD_ZERO ? 0 : of->pad == EK_PAD_PLUS ? 1 : -1;
    return value + ek_lift_of(in->coding);
}

static void widen(ek_buffer *b, const ek_plan_linear *of) {
    if (of->pad_top > b->top) b->top = of->pad_top;
    if (of->pad_left > b->left) b->left = of->pad_left;
    if (of->pad_bottom > b->bottom) b->bottom = of->pad_bottom;
    if (of->pad_right > b->right) b->right = of->pad_right;
}

static void set_sizes(ek_buffer *b) {
    b->words = b->type == EK_BITS ? (b->c + 63) / 64 : 0;
    b->pixel = b->type == EK_BITS ? (uint64_t)b->planes * (uint64_t)b->words * 8
                                  : (uint64_t)b->c * (b->type == EK_U8 || b->type == EK_I8 ? 1 : 4);
    b->row = ((uint64_t)b->left + (uint64_t)b->w + (uint64_t)b->right) * b->pixel;
    b->size = ((uint64_t)b->top + (uint64_t)b->h + (uint64_t)b->bottom) * b->row;
}

static ek_buffer without_border(const ek_plan_tensor *t) {
    return (ek_buffer){
        .type = t->type, .coding = t->coding, .planes = (uint8_t)(t->type == EK_BITS ? ek_planes_of(t->coding) : 0),
        .h = t->h, .w = t->w, .c = t->c,
    };
}

/* Whether the operator's kernel reads the tensor as it is held, with its border: then *fill is what it wants there. */
static bool reads_border(const ek_plan_view *plan, const ek_plan_operator *op, int *fill) {
    int family;
    if (op->kind != EK_LINEAR || !ek_has_padding(&op->of.linear)) return false;
    *fill = ek_fill_of(ek_tensor_at(plan, op->in[0]), &op->of.linear);
    return ek_staging_of(plan, op, &family) == EK_DIRECT;
}

/* The border is as wide as the widest of the operators that want the same in it as the first of them. */
void ek_describe(const ek_plan_view *plan, int32_t tensor, ek_buffer *buffer) {
    int wanted = -1, fill;
    *buffer = without_border(ek_tensor_at(plan, tensor));
    for (int32_t i = 0; i < (int32_t)plan->header->operators; i++) {
        const ek_plan_operator *op = ek_operator_at(plan, i);
        if (op->in[0] != tensor || !reads_border(plan, op, &fill)) continue;
        if (wanted == -1) wanted = fill;
        if (fill == wanted) widen(buffer, &op->of.linear);
    }
    buffer->fill = (uint8_t)(wanted == -1 ? 0 : wanted);
    set_sizes(buffer);
}

/* How the operator's kernel comes by its input, and the buffer for it. */
static int describe_staged(const ek_plan_view *plan, const ek_plan_operator *op, const ek_buffer *in,
                           ek_buffer *staged) {
    const ek_plan_tensor *tensor = ek_tensor_at(plan, op->in[0]);
    const ek_plan_linear *of = &op->of.linear;
    int family, staging = ek_staging_of(plan, op, &family);
    *staged = (ek_buffer){0};
    if (staging == EK_DIRECT && (!ek_has_padding(of) || ek_fill_of(tensor, of) == in->fill)) return EK_DIRECT;
    *staged = without_border(tensor);
    widen(staged, of);
    staged->fill = (uint8_t)ek_fill_of(tensor, of);
    if (staging == EK_PLANES) {
        staged->type = EK_BITS;
        staged->coding = EK_BYTE_PLANES;
        staged->planes = 8;
    } else if (staging == EK_BYTES) {
        staged->type = EK_U8;
        staged->coding = staged->planes = 0;
        staged->fill = (uint8_t)lifted_fill_of(tensor, of);
    } else {
        staging = EK_COPIED;
    }
    set_sizes(staged);
    return staging;
}

/* --- all of it -------------------------------------------------------------------------------------------------- */

static int32_t last_use(const ek_plan_view *plan, int32_t tensor) {
    if ((ek_tensor_at(plan, tensor)->flags & EK_TENSOR_OUTPUT) != 0) return INT32_MAX;
    for (int32_t i = (int32_t)plan->header->operators - 1; i >= 0; i--) {
        const ek_plan_operator *op = ek_operator_at(plan, i);
        if (op->in[0] == tensor || op->in[1] == tensor || op->out == tensor) return i;
    }
    return -1;
}

static void place_tensor(const ek_plan_view *plan, int32_t tensor, uint32_t options, workspace *in, ek_plan *opened) {
    ek_buffer buffer;
    ek_describe(plan, tensor, &buffer);
    buffer.place = (options & EK_PLAN_KEEP) != 0 ? place_apart(in, buffer.size)
                                                 : place(in, buffer.size, last_use(plan, tensor));
    if (opened != NULL) opened->buffers[tensor] = buffer;
}

typedef struct {
    persistent held;
    workspace work;
    uint64_t rows; /* most that preparing one operator's weights takes */
} walk;

/* Sums and floats that nobody else reads need not be copied to the caller: which of the plan's outputs they are, or -1.
 */
static int32_t straight_output(const ek_plan_view *plan, const ek_plan_operator *op, uint32_t options) {
    if (op->of.linear.epilogue == EK_THRESHOLDS || (options & EK_PLAN_KEEP) != 0) return -1;
    if ((ek_tensor_at(plan, op->out)->flags & EK_TENSOR_OUTPUT) == 0) return -1;
    for (int32_t i = 0; i < (int32_t)plan->header->operators; i++) {
        const ek_plan_operator *other = ek_operator_at(plan, i);
        if (other->in[0] == op->out || other->in[1] == op->out) return -1;
    }
    int32_t index = 0;
    for (int32_t i = 0; i < op->out; i++) index += (ek_tensor_at(plan, i)->flags & EK_TENSOR_OUTPUT) != 0;
    return index;
}

static bool lay_out_step(const ek_plan_view *plan, int32_t index, const char *kernels, uint32_t options, walk *at,
                         ek_step *step) {
    const ek_plan_operator *op = ek_operator_at(plan, index);
    ek_linear_step *linear = &step->linear;
    step->op = op;
    step->staged = (ek_buffer){0};
    if (op->kind != EK_LINEAR) return true;
    ek_buffer in, out;
    ek_describe(plan, op->in[0], &in);
    ek_describe(plan, op->out, &out);
    const int staging = describe_staged(plan, op, &in, &step->staged);
    if (!ek_prepare_linear(plan, op, staging == EK_DIRECT ? &in : &step->staged, &out, kernels, linear)) return false;
    linear->staging = staging;
    linear->straight = straight_output(plan, op, options);
    linear->classes = take(&at->held, ek_classes_bytes(linear));
    linear->table = take(&at->held, ek_table_bytes(linear));
    linear->packed = take(&at->held, linear->packed_size);
    if (linear->rows_size > at->rows) at->rows = linear->rows_size;
    step->staged.place = place(&at->work, step->staged.size, index);
    linear->scratch_place = place(&at->work, linear->scratch_size, index);
    return true;
}

/* Tensors, steps and what they take, in the order in which a run comes to them. */
static bool walk_plan(const ek_plan_view *plan, const char *kernels, uint32_t options, walk *at, ek_plan *opened) {
    const int32_t tensors = (int32_t)plan->header->tensors, operators = (int32_t)plan->header->operators;
    for (int32_t i = 0; i < tensors; i++)
        if ((ek_tensor_at(plan, i)->flags & EK_TENSOR_INPUT) != 0) place_tensor(plan, i, options, &at->work, opened);
    for (int32_t i = 0; i < operators; i++) {
        ek_step alone;
        expire(&at->work, i);
        place_tensor(plan, ek_operator_at(plan, i)->out, options, &at->work, opened);
        if (!lay_out_step(plan, i, kernels, options, at, opened == NULL ? &alone : &opened->steps[i])) return false;
    }
    return true;
}

static unsigned char *address(unsigned char *base, const workspace *work, uint64_t at) {
    return (at & APART) != 0 ? base + work->peak + (at & ~APART) : base + at;
}

static void bind_buffer(ek_buffer *b, unsigned char *base, const workspace *work) {
    if (b->size == 0) return;
    b->data = address(base, work, b->place) + (uint64_t)b->top * b->row + (uint64_t)b->left * b->pixel;
}

static void bind(ek_plan *opened, unsigned char *base, const workspace *work) {
    const ek_plan_view *plan = &opened->file;
    for (uint32_t i = 0; i < plan->header->tensors; i++) bind_buffer(&opened->buffers[i], base, work);
    for (uint32_t i = 0; i < plan->header->operators; i++) {
        ek_step *step = &opened->steps[i];
        if (step->op->kind != EK_LINEAR) continue;
        bind_buffer(&step->staged, base, work);
        step->linear.scratch = step->linear.scratch_size == 0 ? NULL : address(base, work, step->linear.scratch_place);
        const ek_buffer *in = step->linear.staging == EK_DIRECT ? &opened->buffers[step->op->in[0]] : &step->staged;
        step->linear.own_data = opened->buffers[step->op->out].data;
        ek_bind_linear(plan, step->op, in, &opened->buffers[step->op->out], &step->linear, base);
    }
}

uint64_t ek_lay_out(const ek_plan_view *plan, const char *kernels, uint32_t options, ek_plan *opened) {
    walk at = {.held = {.base = (void *)opened}};
    take(&at.held, sizeof *opened);
    ek_buffer *buffers = take(&at.held, plan->header->tensors * (uint64_t)sizeof *opened->buffers);
    ek_step *steps = take(&at.held, plan->header->operators * (uint64_t)sizeof *opened->steps);
    if (opened != NULL) *opened = (ek_plan){*plan, options, buffers, steps};
    if (!walk_plan(plan, kernels, options, &at, opened)) return 0;
    const uint64_t tensors = at.work.peak + at.work.apart;
    const uint64_t total = at.held.used + (tensors > at.rows ? tensors : at.rows) + SLACK;
    if (total > SIZE_MAX / 2) return 0;
    if (opened != NULL) bind(opened, (unsigned char *)opened + at.held.used, &at.work);
    return total;
}
