/* Run a plan over inputs and say what every tensor held: a line an input, with the CRC-32 of each tensor's codes (int32,
 * little-endian), then of the outputs as the plan gives them when its tensors share memory.
 *
 * Usage: run_plan PLAN INPUTS KERNELS
 * INPUTS: for each run the plan's inputs one after the other, as plan.h lays them out. KERNELS: an instruction set, or
 * "-" for the fastest here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgekit_native.h"
#include "plan.h"

static void fail(const char *what, const char *name) {
    fprintf(stderr, "run_plan: %s: %s\n", what, name);
    exit(1);
}

static void *room(size_t size) {
    void *found = aligned_alloc(64, (size + 127) / 64 * 64);
    if (found == NULL) fail("no memory", "");
    return found;
}

static uint8_t *read_whole(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail("cannot read", name);
    *size = (size_t)ftell(file);
    uint8_t *content = room(*size);
    rewind(file);
    if (fread(content, 1, *size, file) != *size) fail("cannot read", name);
    fclose(file);
    return content;
}

static uint32_t crc32_of(const void *data, size_t size, uint32_t crc) { /* zlib's */
    const uint8_t *bytes = data;
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t rest = i;
            for (int bit = 0; bit < 8; bit++) rest = rest >> 1 ^ (rest & 1 ? UINT32_C(0xedb88320) : 0);
            table[i] = rest;
        }
    crc = ~crc;
    for (size_t i = 0; i < size; i++) crc = table[(crc ^ bytes[i]) & 0xff] ^ crc >> 8;
    return ~crc;
}

typedef struct {
    ek_plan_header head;
    ek_plan_tensor *tensors;
    void *arena[2];
    ek_plan *opened[2]; /* with every tensor in a place of its own, and without */
    const void **inputs;
    void **outputs;
    size_t input_size;
} network;

static size_t count_of(const ek_plan_tensor *tensor) {
    return (size_t)tensor->h * (size_t)tensor->w * (size_t)tensor->c;
}

static size_t outside_size(const ek_plan_tensor *tensor) {
    switch (tensor->type) {
        case EK_I32:
        case EK_F32: return count_of(tensor) * 4;
        case EK_BITS:
            return (size_t)tensor->h * (size_t)tensor->w * (tensor->coding == EK_BIPOLAR ? 1u : 2u) *
                   (((size_t)tensor->c + 7) / 8);
        default: return count_of(tensor);
    }
}

static network open_network(const uint8_t *plan, size_t size, const char *kernels) {
    network of = {0};
    char why[200];
    if (ek_plan_check(plan, size, why, sizeof why) != EK_OK) fail("not a plan", why);
    memcpy(&of.head, plan, sizeof of.head);
    of.tensors = room(of.head.tensors * sizeof *of.tensors);
    for (uint32_t i = 0; i < of.head.tensors; i++)
        memcpy(&of.tensors[i], plan + of.head.tensor_offset + i * of.head.tensor_size, sizeof *of.tensors);
    for (uint32_t keep = 0; keep < 2; keep++) {
        const uint32_t options = keep == 0 ? EK_PLAN_KEEP : 0;
        const size_t arena = ek_plan_arena(plan, size, kernels, options);
        of.arena[keep] = room(arena);
        if (ek_plan_open(plan, size, of.arena[keep], arena, kernels, options, &of.opened[keep]) != EK_OK)
            fail("cannot open the plan with kernels", kernels == NULL ? "-" : kernels);
    }
    of.inputs = room(of.head.inputs * sizeof *of.inputs);
    of.outputs = room(of.head.outputs * sizeof *of.outputs);
    uint32_t output = 0;
    for (uint32_t i = 0; i < of.head.tensors; i++) {
        if (of.tensors[i].flags & EK_TENSOR_INPUT) of.input_size += outside_size(&of.tensors[i]);
        if (of.tensors[i].flags & EK_TENSOR_OUTPUT) of.outputs[output++] = room(outside_size(&of.tensors[i]));
    }
    return of;
}

/* Copies, since a float in the middle of a file may not be aligned. */
static void point_at(network *of, const uint8_t *from) {
    uint32_t input = 0;
    for (uint32_t i = 0; i < of->head.tensors; i++) {
        if (!(of->tensors[i].flags & EK_TENSOR_INPUT)) continue;
        const size_t size = outside_size(&of->tensors[i]);
        void *copy = room(size);
        memcpy(copy, from, size);
        of->inputs[input++] = copy;
        from += size;
    }
}

static void run(network *of, int shared) {
    if (ek_plan_run(of->opened[shared], of->inputs, of->outputs) != EK_OK) fail("cannot run", "the plan");
}

static void run_once(network *of, const uint8_t *from) {
    point_at(of, from);
    run(of, 0);
    for (uint32_t i = 0; i < of->head.tensors; i++) {
        const size_t count = count_of(&of->tensors[i]);
        int32_t *codes = room(count * sizeof *codes);
        if (ek_plan_codes(of->opened[0], (int32_t)i, codes, (int64_t)count) != EK_OK) fail("no codes of", "a tensor");
        printf("%08" PRIx32 " ", crc32_of(codes, count * sizeof *codes, 0));
        free(codes);
    }
    run(of, 1);
    uint32_t crc = 0, output = 0;
    for (uint32_t i = 0; i < of->head.tensors; i++)
        if (of->tensors[i].flags & EK_TENSOR_OUTPUT)
            crc = crc32_of(of->outputs[output++], outside_size(&of->tensors[i]), crc);
    printf("%08" PRIx32 "\n", crc);
    for (uint32_t i = 0; i < of->head.inputs; i++) free((void *)(uintptr_t)of->inputs[i]);
}

int main(int argc, char **argv) {
    if (argc != 4) fail("wants", "PLAN INPUTS KERNELS");
    size_t plan_size, size;
    const uint8_t *plan = read_whole(argv[1], &plan_size), *inputs = read_whole(argv[2], &size);
    network of = open_network(plan, plan_size, strcmp(argv[3], "-") == 0 ? NULL : argv[3]);
    if (of.input_size == 0 || size % of.input_size != 0) fail("not a whole number of inputs in", argv[2]);
    for (size_t at = 0; at < size; at += of.input_size) run_once(&of, inputs + at);
    return 0;
}
