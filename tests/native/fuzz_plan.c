/* Damage valid plans and give them to the executor. Built with -fsanitize=address,undefined, any bad access ends it.
 *
 * fuzz_plan ROUNDS SEED FILE...: each round changes a plan's bytes or fields, puts the checksum right in most of them,
 * and gives it to check, arena, open and run in blocks of exactly its size. Prints how many were refused and how many
 * ran; 1 where a refusal has no line of its own, or check and open differ.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgekit_native.h"
#include "plan.h"

enum { MOST_BYTES = 1 << 20, MOST_FILES = 64 };
static const uint64_t most_arena = UINT64_C(1) << 24, most_work = UINT64_C(1) << 24;

static uint64_t state;

static uint32_t draw(uint32_t below) { /* Marsaglia 2003, xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below == 0 ? 0 : (uint32_t)((state >> 32) % below);
}

static uint32_t crc32_of(const unsigned char *bytes, size_t size) { /* bit by bit: no code of the library's */
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* --- damage ------------------------------------------------------------------------------------------------------ */

static uint32_t interesting(void) {
    static const uint32_t numbers[] = {0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 32767, 32768,
                                       65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 1u << 20, 1u << 24,
                                       1u << 28};
    return draw(4) == 0 ? draw(UINT32_MAX) : numbers[draw(sizeof numbers / sizeof *numbers)];
}

/* A place in the header, in a tensor, in an operator, or anywhere. */
static size_t somewhere(const unsigned char *bytes, size_t size) {
    ek_plan_header h;
    memcpy(&h, bytes, sizeof h);
    switch (draw(8)) {
        case 0: return draw(sizeof h);
        case 1:
        case 2: return h.tensor_offset + draw(h.tensors) * (size_t)h.tensor_size + draw(h.tensor_size);
        case 3:
        case 4:
        case 5: return h.operator_offset + draw(h.operators) * (size_t)h.operator_size + draw(h.operator_size);
        default: return draw((uint32_t)size);
    }
}

static void change(unsigned char *bytes, size_t size) {
    const size_t at = somewhere(bytes, size);
    if (at >= size) return;
    switch (draw(6)) {
        case 0: bytes[at] ^= (unsigned char)(1u << draw(8)); break;
        case 1: bytes[at] = (unsigned char)draw(256); break;
        case 2: bytes[at] = (unsigned char)(bytes[at] + (draw(2) ? 1 : -1)); break;
        case 3: { /* a field of 2 or 4 bytes */
            const uint32_t number = interesting();
            const size_t width = draw(2) ? 4 : 2, start = at / width * width;
            if (start + width <= size) memcpy(bytes + start, &number, width);
            break;
        }
        case 4: { /* one record or piece over another */
            const size_t from = somewhere(bytes, size), n = draw(2) ? 24 : 80;
            if (from + n <= size && at + n <= size) memmove(bytes + at, bytes + from, n);
            break;
        }
        default: { /* a field a little larger or smaller */
            uint32_t number;
            if (at / 4 * 4 + 4 > size) break;
            memcpy(&number, bytes + at / 4 * 4, 4);
            number += draw(2) ? draw(9) : 0u - draw(9);
            memcpy(bytes + at / 4 * 4, &number, 4);
        }
    }
}

static size_t damage(unsigned char *bytes, size_t size) {
    const uint32_t changes = 1 + draw(draw(4) == 0 ? 12 : 3);
    for (uint32_t i = 0; i < changes; i++) change(bytes, size);
    if (draw(16) == 0) size = draw((uint32_t)size + 1);
    if (size < sizeof(ek_plan_header) || draw(16) == 0) return size;
    const uint32_t magic = EK_PLAN_MAGIC, length = (uint32_t)size;
    if (draw(16) != 0) {
        memcpy(bytes, &magic, 4);
        memcpy(bytes + offsetof(ek_plan_header, size), &length, 4);
        if (draw(8) != 0) bytes[4] = EK_PLAN_MAJOR, bytes[5] = 0;
    }
    const uint32_t crc = crc32_of(bytes + 16, size - 16);
    memcpy(bytes + 12, &crc, 4);
    return size;
}

/* --- what is done with it ---------------------------------------------------------------------------------------- */

static const ek_plan_tensor *tensor_at(const unsigned char *bytes, uint32_t i) {
    const ek_plan_header *h = (const void *)bytes;
    return (const void *)(bytes + h->tensor_offset + (size_t)i * h->tensor_size);
}

static size_t outside_size(const ek_plan_tensor *t) {
    const size_t pixels = (size_t)t->h * (size_t)t->w, c = (size_t)t->c;
    if (t->type == EK_BITS) return pixels * (t->coding == EK_BIPOLAR ? 1 : 2) * ((c + 7) / 8);
    return pixels * c * (t->type == EK_U8 || t->type == EK_I8 ? 1 : 4);
}

/* Products and values of one run, at most: valid plans may ask for hours. */
static uint64_t work_of(const unsigned char *bytes) {
    const ek_plan_header *h = (const void *)bytes;
    uint64_t work = 0;
    for (uint32_t i = 0; i < h->operators; i++) {
        const ek_plan_operator *op = (const void *)(bytes + h->operator_offset + (size_t)i * h->operator_size);
        const ek_plan_tensor *in = tensor_at(bytes, (uint32_t)op->in[0]), *out = tensor_at(bytes, (uint32_t)op->out);
        uint64_t each = 1;
        if (op->kind == EK_LINEAR)
            each = (uint64_t)op->of.linear.kernel_h * op->of.linear.kernel_w * (uint64_t)in->c * 8;
        if (op->kind == EK_POOL || op->kind == EK_SUM) each = (uint64_t)op->of.window.kernel_h * op->of.window.kernel_w;
        const uint64_t here = (uint64_t)out->h * (uint64_t)out->w * (uint64_t)out->c;
        if (here * each > most_work) return UINT64_MAX;
        work += here * each + (uint64_t)in->h * (uint64_t)in->w * (uint64_t)in->c;
    }
    return work;
}

static void run(const unsigned char *bytes, ek_plan *plan) {
    const ek_plan_header *h = (const void *)bytes;
    void **arrays[2] = {malloc((h->inputs + 1) * sizeof(void *)), malloc((h->outputs + 1) * sizeof(void *))};
    uint32_t counts[2] = {0, 0};
    for (uint32_t i = 0; i < h->tensors; i++) {
        const ek_plan_tensor *t = tensor_at(bytes, i);
        if ((t->flags & (EK_TENSOR_INPUT | EK_TENSOR_OUTPUT)) == 0) continue;
        const int side = (t->flags & EK_TENSOR_OUTPUT) != 0;
        const size_t size = outside_size(t);
        unsigned char *array = arrays[side][counts[side]++] = malloc(size);
        for (size_t k = 0; side == 0 && k < size; k++) array[k] = (unsigned char)draw(256);
    }
    ek_plan_run(plan, (const void *const *)arrays[0], arrays[1]);
    for (int side = 0; side < 2; side++) {
        while (counts[side] > 0) free(arrays[side][--counts[side]]);
        free(arrays[side]);
    }
}

static void read_codes(const unsigned char *bytes, const ek_plan *plan) {
    const ek_plan_header *h = (const void *)bytes;
    for (uint32_t i = 0; i < h->tensors; i++) {
        const ek_plan_tensor *t = tensor_at(bytes, i);
        const int64_t count = (int64_t)t->h * t->w * t->c;
        int32_t *codes = malloc((size_t)count * 4);
        if (ek_plan_codes(plan, (int32_t)i, codes, count) != EK_OK) abort();
        free(codes);
    }
}

typedef struct {
    long refused, skipped, ran;
} tally;

/* 0, or 1 where the library contradicts itself. */
static int try_plan(const unsigned char *bytes, size_t size, tally *to) {
    static const char *const sets[] = {"reference", "portable", NULL};
    char why[120];
    const char *kernels = sets[draw(3)];
    const uint32_t options = draw(2) ? EK_PLAN_KEEP : 0;
    const int32_t checked = ek_plan_check(bytes, size, why, sizeof why);
    if (checked != EK_OK) {
        ek_plan *none = NULL;
        static uint64_t arena[8] __attribute__((aligned(64)));
        to->refused++;
        if (strlen(why) == 0 || strchr(why, '\n') != NULL) return 1;
        if (ek_plan_arena(bytes, size, kernels, options) != 0) return 1;
        return ek_plan_open(bytes, size, arena, sizeof arena, kernels, options, &none) == EK_OK;
    }
    if (work_of(bytes) > most_work) return to->skipped++, 0;
    const size_t arena_size = ek_plan_arena(bytes, size, kernels, options);
    if (arena_size == 0) return 1;
    if (arena_size > most_arena) return to->skipped++, 0;
    void *arena = aligned_alloc(64, (arena_size + 63) / 64 * 64);
    ek_plan *plan = NULL;
    if (ek_plan_open(bytes, size, arena, arena_size, kernels, options, &plan) != EK_OK) return 1;
    run(bytes, plan);
    if (options == EK_PLAN_KEEP) read_codes(bytes, plan);
    free(arena);
    to->ran++;
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4 || argc - 3 > MOST_FILES) return 2;
    static unsigned char held[MOST_FILES][MOST_BYTES];
    size_t sizes[MOST_FILES];
    const long rounds = atol(argv[1]);
    tally to = {0, 0, 0};
    state = strtoull(argv[2], NULL, 10) * 2654435761u + 88172645463325252u;
    for (int i = 3; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) return 2;
        sizes[i - 3] = fread(held[i - 3], 1, MOST_BYTES, file);
        fclose(file);
    }
    for (long round = 0; round < rounds; round++) {
        const uint32_t which = draw((uint32_t)(argc - 3));
        unsigned char *bytes = malloc(sizes[which]);
        memcpy(bytes, held[which], sizes[which]);
        const size_t size = damage(bytes, sizes[which]);
        unsigned char *exact = malloc(size == 0 ? 1 : size); /* so that the byte behind it is the sanitizer's */
        memcpy(exact, bytes, size);
        const int wrong = try_plan(exact, size, &to);
        free(exact);
        free(bytes);
        if (wrong) {
            printf("round %ld of %s: the library contradicts itself\n", round, argv[3 + which]);
            return 1;
        }
    }
    printf("refused %ld skipped %ld ran %ld\n", to.refused, to.skipped, to.ran);
    return 0;
}
