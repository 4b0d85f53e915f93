/* A plan run from where it lies, for ever: inputs from the board's line, outputs to it. Allocates nothing.
 *
 * On the line: one line of text, then for every run the inputs' bytes to the board and the outputs' bytes from it. */
#include "board.h"
#include "edgekit_native.h"
#include "plan_data.h"
#ifdef EK_MEASURE
#include "startup.h"
#endif

static void say_number(size_t number) {
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do {
        *--at = (char)('0' + number % 10);
    } while ((number /= 10) != 0);
    board_say(at);
}

/* NULL, with the reason said, where the plan is damaged or its arena too small. */
static ek_plan *open_model(void) {
    char why[128];
    ek_plan *opened = NULL;
    if (ek_plan_check(ek_model, EK_MODEL_SIZE, why, sizeof why) != EK_OK) {
        board_say("edgekit: the plan is damaged: ");
        board_say(why);
        board_say("\n");
        return NULL;
    }
    board_say("edgekit: arena ");
    say_number(ek_plan_arena(ek_model, EK_MODEL_SIZE, NULL, 0));
    board_say(" of ");
    say_number(EK_MODEL_ARENA);
    if (ek_plan_open(ek_model, EK_MODEL_SIZE, ek_model_arena, EK_MODEL_ARENA, NULL, 0, &opened) != EK_OK)
        board_say(" bytes: too small, build with a larger ARENA\n");
    return opened;
}

static bool run(ek_plan *opened) {
    return ek_plan_run(opened, (const void *const *)ek_model_inputs, ek_model_outputs) == EK_OK;
}

static bool read_inputs(void) {
    for (int i = 0; i < EK_MODEL_INPUTS; i++)
        if (!board_read(ek_model_inputs[i], ek_model_input_bytes[i])) return false;
    return true;
}

static void write_outputs(void) {
    for (int i = 0; i < EK_MODEL_OUTPUTS; i++) board_write(ek_model_outputs[i], ek_model_output_bytes[i]);
}

int main(void) {
    board_start();
    ek_plan *opened = open_model();
    if (opened == NULL) return 1;
#ifdef EK_MEASURE
    count_cycles();
    if (!run(opened)) return 1;
    const uint32_t taken = cycles();
    board_say(" bytes, stack ");
    say_number(stack_used());
    board_say(" bytes, cycles ");
    say_number(taken);
    board_say("\n");
#else
    board_say(" bytes\n");
#endif
    while (read_inputs()) {
        if (!run(opened)) return 1;
        write_outputs();
    }
    return 0;
}
