/* Plans opened in the caller's memory and run: the C interface's functions, and which operator goes where. */
#include <string.h>

#include "executor.h"
#include "kernels.h"

static bool names_kernels(const char *kernels) {
    return ek_find_kernel(EK_FAMILY_XNOR, kernels) != NULL && ek_find_kernel(EK_FAMILY_DOT8, kernels) != NULL;
}

size_t ek_plan_arena(const void *plan, size_t size, const char *kernels, uint32_t options) {
    if (ek_plan_check(plan, size, NULL, 0) != EK_OK || !names_kernels(kernels)) return 0;
    const ek_plan_view view = ek_view_of(plan);
    return (size_t)ek_lay_out(&view, kernels, options, NULL);
}

int32_t ek_plan_open(const void *plan, size_t size, void *arena, size_t arena_size, const char *kernels,
                     uint32_t options, ek_plan **opened) {
    if (arena == NULL || opened == NULL || (uintptr_t)arena % 64 != 0) return EK_BAD_ARGUMENT;
    const int32_t checked = ek_plan_check(plan, size, NULL, 0);
    if (checked != EK_OK) return checked;
    if (!names_kernels(kernels)) return EK_NO_KERNEL;
    const ek_plan_view view = ek_view_of(plan);
    const uint64_t needed = ek_lay_out(&view, kernels, options, NULL);
    if (needed == 0 || needed > arena_size) return EK_BAD_ARGUMENT;
    ek_lay_out(&view, kernels, options, arena);
    *opened = arena;
    return EK_OK;
}

/* An output that is written where the caller wants it; kernels store at a value's own alignment. */
static void aim(ek_linear_step *linear, ek_buffer *out, void *wanted) {
    ek_epilogue *to = &linear->of.layer.to;
    out->data = (uintptr_t)wanted % sizeof(float) == 0 ? wanted : linear->own_data;
    if (to->sums != NULL) to->sums = (void *)out->data;
    else to->scaled = (void *)out->data;
}

static void run_linear(const ek_step *step, const ek_buffer *in) {
    const ek_linear_step *linear = &step->linear;
    if (linear->staging != EK_DIRECT) ek_stage(step, in);
    if (linear->family == EK_FAMILY_XNOR) linear->kernel.xnor->run(&linear->of.xnor, linear->scratch);
    else linear->kernel.dot8->run(&linear->of.dot8, linear->scratch);
}

static void run_step(const ek_plan *opened, const ek_step *step) {
    const ek_plan_operator *op = step->op;
    const ek_plan_view *plan = &opened->file;
    const ek_buffer *in = &opened->buffers[op->in[0]], *out = &opened->buffers[op->out];
    switch (op->kind) {
        case EK_QUANTIZE: ek_run_quantize(&op->of.quantize, in, out); break;
        case EK_LINEAR: run_linear(step, in); break;
        case EK_THRESHOLD: ek_run_threshold(&op->of.threshold, plan, in, out); break;
        case EK_POOL: ek_run_pool(&op->of.window, plan, in, out); break;
        case EK_SUM: ek_run_sum(&op->of.window, in, out); break;
        case EK_ADD: ek_run_add(in, &opened->buffers[op->in[1]], out); break;
        case EK_AFFINE: ek_run_affine(&op->of.affine, plan, in, out); break;
        case EK_REQUANTIZE: ek_run_requantize(&op->of.requantize, plan, in, out); break;
        case EK_SOFTMAX: ek_run_softmax(in, out); break;
        case EK_CONFIDENCE: ek_run_confidence(in, out); break;
        default: ek_run_copy(in, out); break;
    }
    ek_fill_border(out);
}

int32_t ek_plan_run(ek_plan *opened, const void *const *inputs, void *const *outputs) {
    if (opened == NULL || inputs == NULL || outputs == NULL) return EK_BAD_ARGUMENT;
    const ek_plan_view *plan = &opened->file;
    const int32_t tensors = (int32_t)plan->header->tensors, operators = (int32_t)plan->header->operators;
    for (int32_t i = 0; i < tensors; i++) {
        const ek_plan_tensor *tensor = ek_tensor_at(plan, i);
        if ((tensor->flags & EK_TENSOR_INPUT) != 0) ek_bring_in(&opened->buffers[i], tensor, *inputs++);
    }
    for (int32_t i = 0; i < operators; i++) {
        ek_step *step = &opened->steps[i];
        if (step->op->kind == EK_LINEAR && step->linear.straight >= 0)
            aim(&step->linear, &opened->buffers[step->op->out], outputs[step->linear.straight]);
        run_step(opened, step);
    }
    for (int32_t i = 0; i < tensors; i++) {
        if ((ek_tensor_at(plan, i)->flags & EK_TENSOR_OUTPUT) == 0) continue;
        if (opened->buffers[i].data != *outputs) ek_hand_out(&opened->buffers[i], *outputs);
        outputs++;
    }
    return EK_OK;
}

int32_t ek_plan_codes(const ek_plan *opened, int32_t tensor, int32_t *codes, int64_t count) {
    if (opened == NULL || codes == NULL || (opened->options & EK_PLAN_KEEP) == 0) return EK_BAD_ARGUMENT;
    if (tensor < 0 || tensor >= (int32_t)opened->file.header->tensors) return EK_BAD_ARGUMENT;
    if (count != ek_count_of(ek_tensor_at(&opened->file, tensor))) return EK_BAD_ARGUMENT;
    ek_read_codes(&opened->buffers[tensor], codes);
    return EK_OK;
}
