/* Run every kernel that this CPU can run against the reference on random layers; print their names and, so that
 * machines can be compared, a checksum of what the reference gave; or the first difference.
 *
 * Usage: check_kernels LAYERS SEED
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgekit_native.h"
#include "kernels.h"

static const char *const family_names[EK_FAMILY_COUNT] = {"xnor", "dot8"};

static uint64_t state;

static uint64_t draw(void) { /* Marsaglia 2003, xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int32_t between(int32_t least, int32_t most) {
    return least + (int32_t)((draw() >> 16) % (uint64_t)(most - least + 1));
}

static int one_in(int32_t n) { return between(1, n) == 1; }

static void *some(size_t size, size_t alignment) {
    void *found = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment + alignment);
    if (found == NULL) abort();
    return found;
}

/* As many bytes as are asked for and no more, so that a sanitizer sees who reads past them. */
static void *exactly(size_t size) {
    void *found = malloc(size > 0 ? size : 1);
    if (found == NULL) abort();
    return found;
}

static uint32_t checksum(const void *data, size_t size, uint32_t sum) { /* FNV-1a */
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++) sum = (sum ^ bytes[i]) * 16777619u;
    return sum;
}

/* --- layers ------------------------------------------------------------------------------------------------------- */

enum { CLASSES = 4, MOST_SIDE = 32 };

static uint16_t class_of_row[MOST_SIDE], class_of_column[MOST_SIDE];

typedef struct {
    size_t size; /* bytes of what a layer gives */
    int32_t *limits, *constant2;
    float *scale, *bias;
} tables;

static float draw_float(void) { /* denormal ones and their neighbours as well, but neither infinite nor NaN */
    const uint32_t exponent = one_in(3) ? (uint32_t)between(0, 6) : (uint32_t)between(90, 150);
    const uint32_t bits = ((uint32_t)draw() & 0x807fffffu) | exponent << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void draw_sides(ek_window_layer *layer) {
    layer->out_h = one_in(3) ? 1 : between(1, 5);
    layer->out_w = one_in(3) ? 1 : between(1, 11);
    layer->out_c = one_in(3) ? 64 * between(1, 3) : between(1, 150);
    layer->kernel_h = between(1, 5);
    layer->kernel_w = one_in(2) ? layer->kernel_h : between(1, 5);
    layer->stride_h = between(1, 3);
    layer->stride_w = one_in(2) ? layer->stride_h : between(1, 3);
}

/* No more work than the reference does in a few milliseconds, since it may run under emulation. Where a position has
 * very many terms: a dense layer. */
static void draw_shape(ek_window_layer *layer, int32_t terms_of_a_position) {
    const int32_t most = 200000 / terms_of_a_position;
    if (most < 10) {
        *layer = (ek_window_layer){.out_h = 1, .out_w = 1, .out_c = 2, .kernel_h = 1, .kernel_w = 1};
        layer->stride_h = layer->stride_w = 1;
    } else {
        do draw_sides(layer);
        while (layer->out_h * layer->out_w * layer->out_c * layer->kernel_h * layer->kernel_w > most);
    }
    const int32_t classes = one_in(2) ? 1 : 2;
    for (int i = 0; i < MOST_SIDE; i++) {
        class_of_row[i] = (uint16_t)(2 * between(0, classes - 1));
        class_of_column[i] = (uint16_t)between(0, classes - 1);
    }
    layer->class_of_row = class_of_row;
    layer->class_of_column = class_of_column;
}

static int falling(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x < y) - (x > y);
}

/* Limits around half of what Q can be, `never` and `always` among them. */
static int32_t draw_limit(int32_t low, int32_t high, int32_t never) {
    if (one_in(12)) return one_in(2) ? never : INT32_MAX;
    return between(low, high);
}

static tables draw_epilogue(ek_window_layer *layer, int32_t low, int32_t high, int32_t never, int32_t gain2) {
    ek_epilogue *to = &layer->to;
    *to = (ek_epilogue){.padded = (layer->out_c + EK_BLOCK - 1) / EK_BLOCK * EK_BLOCK, .gain2 = gain2};
    const size_t padded = (size_t)to->padded, out_c = (size_t)layer->out_c;
    const size_t pixels = (size_t)layer->out_h * (size_t)layer->out_w;
    tables made = {.limits = exactly(CLASSES * 3 * padded * 4), .constant2 = exactly(CLASSES * padded * 4)};
    made.scale = exactly(out_c * 4);
    made.bias = exactly(out_c * 4);
    to->levels = between(1, 3);
    for (size_t row = 0; row < CLASSES; row++)
        for (size_t c = 0; c < padded; c++) {
            int32_t limits[3];
            for (int t = 0; t < 3; t++) limits[t] = draw_limit(low, high, never);
            qsort(limits, (size_t)to->levels, sizeof *limits, falling);
            for (int t = 0; t < to->levels; t++)
                made.limits[(row * (size_t)to->levels + (size_t)t) * padded + c] = limits[t];
            made.constant2[row * padded + c] = between(-100000, 100000) * 2;
        }
    for (size_t c = 0; c < out_c; c++) {
        made.scale[c] = draw_float();
        made.bias[c] = one_in(3) ? 0 : draw_float();
    }
    to->limits = made.limits;
    to->constant2 = made.constant2;
    to->scale = made.scale;
    to->bias = made.bias;
    made.size = pixels * out_c * 4;
    if (!one_in(2)) return made;
    const int32_t planes = to->levels == 1 ? 1 : 2, gap = one_in(2) ? 0 : between(1, 2);
    to->bits_words = to->padded / EK_BLOCK;
    to->bits_pixel = planes * to->bits_words + gap;
    to->bits_row = layer->out_w * to->bits_pixel + gap;
    made.size = (size_t)(layer->out_h * to->bits_row) * 8;
    return made;
}

/* Where the results go: kind 0 bits (where the layer has a place for them), 1 sums, 2 scaled. */
static void direct(ek_epilogue *to, int kind, void *out) {
    to->bits = kind == 0 ? out : NULL;
    to->sums = kind == 1 ? out : NULL;
    to->scaled = kind == 2 ? out : NULL;
}

static void release(tables *made) {
    free(made->limits);
    free(made->constant2);
    free(made->scale);
    free(made->bias);
}

static void describe(const char *family, const char *name, const ek_window_layer *layer, int32_t in_c) {
    printf("%s %s: out %dx%dx%d, kernel %dx%d, stride %dx%d, in_c %d, %s, levels %d: ", family, name, (int)layer->out_h,
           (int)layer->out_w, (int)layer->out_c, (int)layer->kernel_h, (int)layer->kernel_w, (int)layer->stride_h,
           (int)layer->stride_w, (int)in_c, layer->to.bits ? "bits" : layer->to.sums ? "sums" : "scaled",
           (int)layer->to.levels);
}

/* --- what is compared ----------------------------------------------------------------------------------------------- */

enum { MOST_RUNS = 8, BEHIND = 64 };

typedef struct {
    const char *name;
    const void *kernel;
} runnable;

static int32_t kernels_of(int32_t family, runnable *found) {
    int32_t count = 0;
    for (int32_t i = 0; i < ek_kernel_count(); i++) {
        ek_kernel_info info;
        ek_kernel_get(i, &info);
        if (strcmp(info.family, family_names[family]) != 0 || !info.supported) continue;
        found[count++] = (runnable){info.name, ek_find_kernel(family, info.name)};
    }
    return count;
}

/* 0 where `got` is what the reference gave. */
static int differs(const uint8_t *wanted, const uint8_t *got, size_t size) {
    for (size_t i = 0; i < size + BEHIND; i++)
        if (wanted[i] != got[i]) {
            printf("byte %d of %d: wanted %d, got %d\n", (int)i, (int)size, wanted[i], got[i]);
            return 1;
        }
    return 0;
}

/* --- dot8 --------------------------------------------------------------------------------------------------------- */

static void run_dot8(const ek_dot8_kernel *kernel, ek_dot8_layer of, const int8_t *rows) {
    void *packed = some(kernel->pack_size(&of), 64), *scratch = some(kernel->scratch_size(&of), 64);
    kernel->pack(&of, rows, packed);
    of.packed = packed;
    kernel->run(&of, scratch);
    free(packed);
    free(scratch);
}

static int check_dot8(const runnable *kernels, int32_t count, uint32_t *sum) {
    ek_dot8_layer of = {.in_c = one_in(3) ? between(1, 4) : one_in(3) ? 16 * between(1, 5) : between(1, 70)};
    draw_shape(&of.layer, of.in_c);
    of.in_pixel = of.in_c + (one_in(4) ? between(1, 9) : 0);
    const int32_t in_h = (of.layer.out_h - 1) * of.layer.stride_h + of.layer.kernel_h;
    const int32_t in_w = (of.layer.out_w - 1) * of.layer.stride_w + of.layer.kernel_w;
    of.in_row = in_w * of.in_pixel + (one_in(4) ? between(1, 9) : 0);
    const size_t held = (size_t)((in_h - 1) * of.in_row + (in_w - 1) * of.in_pixel + of.in_c);
    const size_t terms = (size_t)of.layer.kernel_h * (size_t)of.layer.kernel_w * (size_t)of.in_c;
    uint8_t *in = exactly(held);
    int8_t *rows = exactly(terms * (size_t)of.layer.out_c);
    const int extreme = one_in(3), small = one_in(3); /* else over the whole range */
    for (size_t i = 0; i < held; i++) in[i] = extreme ? (uint8_t)(one_in(9) ? 0 : 255) : (uint8_t)draw();
    for (size_t i = 0; i < terms * (size_t)of.layer.out_c; i++) {
        if (extreme) rows[i] = one_in(2) ? 127 : -128;
        else rows[i] = (int8_t)(small ? between(-1, 1) : between(-128, 127));
    }
    if (extreme) memset(rows, one_in(2) ? 127 : 128, terms); /* the first channel's sum is as large as can be */
    of.in = in;
    const int32_t usual = (int32_t)terms * (small ? 60 : 2000);
    tables made = draw_epilogue(&of.layer, -usual, usual, INT32_MIN, 2);
    const int first = of.layer.to.bits_words > 0 ? 0 : 1, last = first == 0 ? 0 : 2;
    uint8_t *wanted = some(made.size + BEHIND, 64), *got = some(made.size + BEHIND, 64);
    int bad = 0;
    for (int kind = first; kind <= last && !bad; kind++) {
        memset(wanted, 0xa5, made.size + BEHIND);
        direct(&of.layer.to, kind, wanted);
        run_dot8(kernels[0].kernel, of, rows);
        *sum = checksum(wanted, made.size, *sum);
        for (int32_t k = 1; k < count && !bad; k++) {
            memset(got, 0xa5, made.size + BEHIND);
            direct(&of.layer.to, kind, got);
            run_dot8(kernels[k].kernel, of, rows);
            if (memcmp(wanted, got, made.size + BEHIND) == 0) continue;
            describe("dot8", kernels[k].name, &of.layer, of.in_c);
            bad = differs(wanted, got, made.size);
        }
    }
    release(&made);
    free(in);
    free(rows);
    free(wanted);
    free(got);
    return bad;
}

/* --- xnor --------------------------------------------------------------------------------------------------------- */

static void run_xnor(const ek_xnor_kernel *kernel, ek_xnor_layer of, const uint32_t *rows) {
    const size_t size = kernel->pack_size(&of);
    void *packed = some(size, 64), *scratch = some(kernel->scratch_size(&of), 64);
    const ek_xnor_weights weights = {rows};
    if (size > 0) kernel->pack(&of, &weights, packed);
    of.packed = size > 0 ? packed : rows;
    kernel->run(&of, scratch);
    free(packed);
    free(scratch);
}

static int heavier(const void *a, const void *b) {
    return ((const ek_pass *)b)->weight - ((const ek_pass *)a)->weight;
}

static void draw_passes(ek_xnor_layer *of) {
    of->in_planes = one_in(2) ? 1 : one_in(4) ? 8 : 2;
    of->weight_planes = one_in(2) ? 1 : 2;
    of->passes = of->in_planes * of->weight_planes;
    if (of->passes > EK_MAX_PASSES) of->passes = EK_MAX_PASSES;
    for (int32_t i = 0; i < of->passes; i++) {
        const int32_t in_plane = i % of->in_planes, weight_plane = i / of->in_planes;
        of->pass[i] = (ek_pass){(uint8_t)in_plane, (uint8_t)weight_plane, (uint8_t)(in_plane + weight_plane)};
    }
    qsort(of->pass, (size_t)of->passes, sizeof *of->pass, heavier);
}

static int32_t largest_q(const ek_xnor_layer *of, size_t terms) {
    int32_t q = 0;
    for (int32_t i = 0; i < of->passes; i++) q += (int32_t)terms << of->pass[i].weight;
    return q;
}

static uint64_t last_ones(int32_t count) { return count >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << count) - 1; }

static uint64_t draw_word(int32_t used) { /* of `used` bits, all ones now and then */
    return last_ones(used) & (one_in(5) ? ~UINT64_C(0) : draw());
}

static int check_xnor(const runnable *kernels, int32_t count, uint32_t *sum) {
    ek_xnor_layer of = {.in_c = one_in(3) ? 64 * between(1, 4) : one_in(3) ? between(1, 9) : between(1, 200)};
    if (one_in(30)) of.in_c = between(60000, 140000); /* more than counters of 16 bits hold */
    draw_passes(&of);
    draw_shape(&of.layer, of.in_c * of.passes);
    of.words = (of.in_c + 63) / 64;
    of.in_pixel = of.in_planes * of.words + (one_in(4) ? between(1, 2) : 0);
    const int32_t in_h = (of.layer.out_h - 1) * of.layer.stride_h + of.layer.kernel_h;
    const int32_t in_w = (of.layer.out_w - 1) * of.layer.stride_w + of.layer.kernel_w;
    of.in_row = in_w * of.in_pixel + (one_in(4) ? between(1, 3) : 0);
    const size_t held = (size_t)((in_h - 1) * of.in_row + (in_w - 1) * of.in_pixel + of.in_planes * of.words);
    const size_t terms = (size_t)of.layer.kernel_h * (size_t)of.layer.kernel_w * (size_t)of.in_c;
    const size_t row = (terms + 31) / 32, all = row * (size_t)of.weight_planes * (size_t)of.layer.out_c;
    const int opposite = one_in(8);
    uint64_t *in = exactly(held * 8);
    uint32_t *rows = exactly(all * 4);
    memset(in, 0, held * 8);
    for (int32_t y = 0; y < in_h; y++)
        for (int32_t x = 0; x < in_w; x++)
            for (int32_t word = 0; word < of.in_planes * of.words; word++) {
                const int32_t used = of.in_c - word % of.words * 64;
                in[y * of.in_row + x * of.in_pixel + word] = opposite ? last_ones(used) : draw_word(used);
            }
    for (size_t i = 0; i < all; i++) {
        const size_t used = terms - i % row * 32;
        rows[i] = opposite ? 0 : (uint32_t)draw_word(used > 32 ? 32 : (int32_t)used);
    }
    of.in = in;
    const int32_t most = largest_q(&of, terms);
    tables made = draw_epilogue(&of.layer, most * 3 / 8, most * 5 / 8, -1, 2 * between(1, 2));
    const int first = of.layer.to.bits_words > 0 ? 0 : 1, last = first == 0 ? 0 : 2;
    uint8_t *wanted = some(made.size + BEHIND, 64), *got = some(made.size + BEHIND, 64);
    int bad = 0;
    for (int kind = first; kind <= last && !bad; kind++) {
        memset(wanted, 0xa5, made.size + BEHIND);
        direct(&of.layer.to, kind, wanted);
        run_xnor(kernels[0].kernel, of, rows);
        *sum = checksum(wanted, made.size, *sum);
        for (int32_t k = 1; k < count && !bad; k++) {
            memset(got, 0xa5, made.size + BEHIND);
            direct(&of.layer.to, kind, got);
            run_xnor(kernels[k].kernel, of, rows);
            if (memcmp(wanted, got, made.size + BEHIND) == 0) continue;
            describe("xnor", kernels[k].name, &of.layer, of.in_c);
            printf("in_planes %d, passes %d: ", (int)of.in_planes, (int)of.passes);
            bad = differs(wanted, got, made.size);
        }
    }
    release(&made);
    free(in);
    free(rows);
    free(wanted);
    free(got);
    return bad;
}

static int check_family(int32_t family, int32_t layers) {
    runnable kernels[MOST_RUNS];
    const int32_t count = kernels_of(family, kernels);
    uint32_t sum = 2166136261u;
    for (int32_t i = 0; i < layers; i++) {
        const int bad = family == EK_FAMILY_XNOR ? check_xnor(kernels, count, &sum) : check_dot8(kernels, count, &sum);
        if (bad) return 1;
    }
    printf("%s:", family_names[family]);
    for (int32_t k = 0; k < count; k++) printf(" %s", kernels[k].name);
    printf(" %08x\n", (unsigned)sum);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    for (int32_t family = 0; family < EK_FAMILY_COUNT; family++) {
        state = UINT64_C(88172645463325252) + (uint64_t)strtoul(argv[2], NULL, 10);
        if (check_family(family, (int32_t)strtol(argv[1], NULL, 10)) != 0) return 1;
    }
    printf("cpu:");
    for (int32_t bit = 0; ek_cpu_feature_name(bit) != NULL; bit++)
        if (ek_cpu_features() >> bit & 1) printf(" %s", ek_cpu_feature_name(bit));
    printf("\n");
    return 0;
}
