/* Run every kernel of family "xnor" that this CPU can run against the reference: `check_xnor SEED COUNT` draws COUNT
 * layers, then takes every possible Q at every limit. Prints the kernels' names, or the first difference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgekit_native.h"
#include "kernels.h"

static uint64_t state;

static uint64_t draw(void) { /* Marsaglia 2003, xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int32_t below(int32_t n) { return (int32_t)(draw() >> 33) % n; }
static int32_t between(int32_t low, int32_t high) { return low + below(high - low + 1); }

static void *fresh(size_t size, int fill) {
    const size_t rounded = (size + 63) / 64 * 64 + 64;
    void *found = aligned_alloc(64, rounded);
    if (found == NULL) abort();
    return memset(found, fill, rounded);
}

enum { EVERY = 300 }; /* the most terms of a layer whose every Q is tried */

/* A layer with all it points at; the output is one block of memory, compared as a whole. */
typedef struct {
    ek_xnor_layer l;
    uint64_t *in;
    uint32_t *rows;
    uint16_t *classes;
    int32_t *limits, *constant2;
    float *scale, *bias;
    void *out;
    size_t out_size;
} drawn;

static void release(drawn *of) {
    void *all[] = {of->in, of->rows, of->classes, of->limits, of->constant2, of->scale, of->bias, of->out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int32_t channels(void) {
    static const int32_t usual[] = {1, 3, 8, 31, 32, 33, 63, 64, 65, 96, 128, 192};
    return below(2) ? usual[below(sizeof usual / sizeof *usual)] : between(1, 150);
}

static int32_t terms(const ek_xnor_layer *l) { return l->layer.kernel_h * l->layer.kernel_w * l->in_c; }

static int32_t row_words(const ek_xnor_layer *l) { return (terms(l) + 31) / 32; }

/* Passes as codings make them: one plane or two on either side, weights 0 or a plane's power of two. */
static void draw_passes(ek_xnor_layer *l) {
    const int shifted_in = below(2), shifted_weight = below(2);
    l->in_planes = between(1, 2);
    l->weight_planes = between(1, 2);
    l->passes = 0;
    for (int weight = 2; weight >= 0; weight--)
        for (int i = 0; i < l->in_planes; i++)
            for (int w = 0; w < l->weight_planes; w++)
                if ((shifted_in ? i : 0) + (shifted_weight ? w : 0) == weight)
                    l->pass[l->passes++] = (ek_pass){(uint8_t)i, (uint8_t)w, (uint8_t)weight};
}

static int32_t most(const ek_xnor_layer *l) {
    int32_t q = 0;
    for (int32_t i = 0; i < l->passes; i++) q += terms(l) << l->pass[i].weight;
    return q;
}

static void draw_shape(ek_xnor_layer *l) {
    static const int32_t kernels[] = {1, 1, 2, 3, 3, 3, 5};
    ek_window_layer *w = &l->layer;
    const int dense = below(4) == 0;
    w->kernel_h = kernels[below(7)];
    w->kernel_w = below(3) ? w->kernel_h : kernels[below(7)];
    w->stride_h = between(1, 2);
    w->stride_w = between(1, 2);
    w->out_h = dense ? 1 : between(1, 5);
    w->out_w = dense ? 1 : between(1, 7);
    w->out_c = channels();
    l->in_c = channels();
    if (dense && below(2)) l->in_c *= between(1, 9);
}

/* The input tensor, wider than the windows now and then. */
static void draw_input(drawn *of) {
    ek_xnor_layer *l = &of->l;
    l->words = (l->in_c + 63) / 64;
    const int32_t h = (l->layer.out_h - 1) * l->layer.stride_h + l->layer.kernel_h;
    const int32_t w = (l->layer.out_w - 1) * l->layer.stride_w + l->layer.kernel_w + below(3) * below(2);
    l->in_pixel = l->in_planes * l->words;
    l->in_row = w * l->in_pixel;
    const size_t count = (size_t)(h * l->in_row);
    of->in = fresh(count * sizeof *of->in, 0);
    for (size_t i = 0; i < count; i++) {
        const int32_t used = l->in_c - (int32_t)(i % (size_t)l->words) * 64;
        of->in[i] = used >= 64 ? draw() : draw() & ((UINT64_C(1) << used) - 1);
    }
    l->in = of->in;
}

static void draw_weights(drawn *of) {
    const ek_xnor_layer *l = &of->l;
    const size_t count = (size_t)(l->layer.out_c * l->weight_planes * row_words(l));
    of->rows = fresh(count * sizeof *of->rows, 0);
    for (size_t i = 0; i < count; i++) {
        const int32_t used = terms(l) - (int32_t)(i % (size_t)row_words(l)) * 32;
        of->rows[i] = (uint32_t)(draw() >> 20) & (used >= 32 ? ~0u : (1u << used) - 1);
    }
}

static int falling(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x < y) - (x > y);
}

static int32_t draw_limit(const ek_xnor_layer *l) {
    const int32_t middle = most(l) / 2;
    if (below(12) == 0) return below(2) ? -1 : INT32_MAX;
    return below(2) ? between(middle - middle / 4, middle + middle / 4) : between(0, most(l));
}

static void draw_tables(drawn *of, int32_t classes) {
    const ek_xnor_layer *l = &of->l;
    const int32_t padded = l->layer.to.padded, levels = l->layer.to.levels;
    of->limits = fresh((size_t)(classes * 3 * padded) * sizeof(int32_t), 0x7f);
    of->constant2 = fresh((size_t)(classes * padded) * sizeof(int32_t), 0x7f);
    of->scale = fresh((size_t)l->layer.out_c * sizeof(float), 0);
    of->bias = fresh((size_t)l->layer.out_c * sizeof(float), 0);
    for (int32_t k = 0; k < classes; k++)
        for (int32_t c = 0; c < l->layer.out_c; c++) {
            int32_t drawn_limits[3];
            for (int32_t t = 0; t < levels; t++) drawn_limits[t] = draw_limit(l);
            qsort(drawn_limits, (size_t)levels, sizeof *drawn_limits, falling);
            for (int32_t t = 0; t < levels; t++) of->limits[(k * levels + t) * padded + c] = drawn_limits[t];
            of->constant2[k * padded + c] = between(-1000, 1000) * 2 + (below(2) ? most(l) * 2 : 0);
        }
    for (int32_t c = 0; c < l->layer.out_c; c++) {
        of->scale[c] = (float)(between(-9999, 9999)) / 7.0f;
        of->bias[c] = (float)(between(-9999, 9999)) / 3.0f;
    }
}

/* Where the output goes: whole planes, floats or integers; pixels of bits lie apart now and then. */
static void draw_output(drawn *of, int kind) {
    ek_window_layer *l = &of->l.layer;
    ek_epilogue *to = &l->to;
    const int32_t planes = to->levels == 1 ? 1 : 2;
    to->bits_words = (l->out_c + 63) / 64;
    to->bits_pixel = planes * to->bits_words;
    to->bits_row = (l->out_w + below(3)) * to->bits_pixel;
    of->out_size = kind == 0 ? (size_t)(l->out_h * to->bits_row) * 8 : (size_t)(l->out_h * l->out_w * l->out_c) * 4;
    of->out = fresh(of->out_size, 0xa5);
    if (kind == 0) to->bits = of->out;
    if (kind == 1) to->sums = of->out;
    if (kind == 2) to->scaled = of->out;
    to->limits = of->limits;
    to->constant2 = of->constant2;
    to->gain2 = 1 << between(1, 2);
    to->scale = of->scale;
    to->bias = of->bias;
}

static drawn draw_layer(void) {
    drawn of = {0};
    ek_xnor_layer *l = &of.l;
    draw_shape(l);
    draw_passes(l);
    draw_input(&of);
    draw_weights(&of);
    l->layer.to.padded = (l->layer.out_c + EK_BLOCK - 1) / EK_BLOCK * EK_BLOCK;
    l->layer.to.levels = between(1, 3);
    const int32_t row_classes = between(1, 2), column_classes = between(1, 2);
    of.classes = fresh((size_t)(l->layer.out_h + l->layer.out_w) * sizeof *of.classes, 0);
    for (int32_t y = 0; y < l->layer.out_h; y++) of.classes[y] = (uint16_t)(below(row_classes) * column_classes);
    for (int32_t x = 0; x < l->layer.out_w; x++) of.classes[l->layer.out_h + x] = (uint16_t)below(column_classes);
    l->layer.class_of_row = of.classes;
    l->layer.class_of_column = of.classes + l->layer.out_h;
    draw_tables(&of, row_classes * column_classes);
    draw_output(&of, below(3));
    return of;
}

/* What a kernel writes, in memory of the caller's to free. */
static void *output_of(const drawn *of, const ek_xnor_kernel *kernel) {
    ek_xnor_layer l = of->l;
    void *packed = NULL, *scratch = fresh(kernel->scratch_size(&l), 0x5a);
    const size_t size = kernel->pack_size(&l);
    l.packed = of->rows;
    if (size != 0) {
        const ek_xnor_weights weights = {of->rows};
        packed = fresh(size, 0x5a);
        kernel->pack(&l, &weights, packed);
        l.packed = packed;
    }
    memset(of->out, 0xa5, of->out_size);
    kernel->run(&l, scratch);
    void *copy = fresh(of->out_size, 0);
    memcpy(copy, of->out, of->out_size);
    free(packed);
    free(scratch);
    return copy;
}

static int differs(const drawn *of, const char *name) {
    const ek_window_layer *l = &of->l.layer;
    void *wanted = output_of(of, ek_find_kernel(EK_FAMILY_XNOR, "reference"));
    void *got = output_of(of, ek_find_kernel(EK_FAMILY_XNOR, name));
    const int different = memcmp(wanted, got, of->out_size) != 0;
    if (different) {
        size_t at = 0;
        while (((uint8_t *)wanted)[at] == ((uint8_t *)got)[at]) at++;
        printf("%s: byte %zu of %zu differs: in_c %d, planes %d and %d, passes %d, kernel %d x %d, stride %d x %d, "
               "output %d x %d x %d, %s, levels %d\n",
               name, at, of->out_size, (int)of->l.in_c, (int)of->l.in_planes, (int)of->l.weight_planes,
               (int)of->l.passes, (int)l->kernel_h, (int)l->kernel_w, (int)l->stride_h, (int)l->stride_w,
               (int)l->out_h, (int)l->out_w, (int)l->out_c,
               l->to.bits != NULL ? "bits" : l->to.sums != NULL ? "sums" : "scaled", (int)l->to.levels);
    }
    free(wanted);
    free(got);
    return different;
}

/* Channel c has weights 0 and limit c - 1; pixel x has its first x bits set: Q = x meets every limit. */
static int every_q(const char *name, int32_t n) {
    drawn of = {0};
    ek_xnor_layer *l = &of.l;
    l->layer = (ek_window_layer){.out_h = 1, .out_w = n + 1, .out_c = n + 2, .kernel_h = 1, .kernel_w = 1};
    l->layer.stride_h = l->layer.stride_w = 1;
    l->in_c = n;
    l->in_planes = l->weight_planes = l->passes = 1;
    draw_input(&of);
    for (int32_t x = 0; x <= n; x++)
        for (int32_t k = 0; k < l->words * 64; k++) {
            uint64_t *word = of.in + x * l->in_pixel + k / 64;
            *word = (*word & ~(UINT64_C(1) << (k % 64))) | (uint64_t)(k < x) << (k % 64);
        }
    of.rows = fresh((size_t)(l->layer.out_c * row_words(l)) * sizeof *of.rows, 0);
    of.classes = fresh((size_t)(n + 2) * sizeof *of.classes, 0);
    l->layer.class_of_row = l->layer.class_of_column = of.classes;
    l->layer.to.padded = (l->layer.out_c + EK_BLOCK - 1) / EK_BLOCK * EK_BLOCK;
    l->layer.to.levels = 1;
    draw_tables(&of, 1);
    for (int32_t c = 0; c < l->layer.out_c; c++) of.limits[c] = c - 1;
    draw_output(&of, 0);
    uint64_t *got = output_of(&of, ek_find_kernel(EK_FAMILY_XNOR, name));
    int wrong = 0;
    for (int32_t x = 0; x <= n && !wrong; x++)
        for (int32_t c = 0; c < l->layer.out_c && !wrong; c++) {
            const int bit = (int)(got[x * l->layer.to.bits_pixel + c / 64] >> (c % 64) & 1);
            wrong = bit != (x <= c - 1);
            if (wrong) printf("%s: Q %d of %d at limit %d gives %d\n", name, (int)x, (int)n, (int)c - 1, bit);
        }
    free(got);
    release(&of);
    return wrong;
}

static int check(const char *name, uint64_t seed, long count) {
    state = seed * UINT64_C(0x9e3779b97f4a7c15) + 88172645463325252u;
    for (long i = 0; i < count && strcmp(name, "reference") != 0; i++) {
        drawn of = draw_layer();
        const int wrong = differs(&of, name);
        release(&of);
        if (wrong) return 1;
    }
    for (int32_t n = 1; n <= EVERY; n = n < 70 ? n + 3 : n + 23)
        if (every_q(name, n)) return 1;
    return 0;
}

int main(int argc, char **argv) {
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    const long count = argc > 2 ? strtol(argv[2], NULL, 10) : 300;
    for (int32_t i = 0; i < ek_kernel_count(); i++) {
        ek_kernel_info info;
        ek_kernel_get(i, &info);
        if (strcmp(info.family, "xnor") != 0 || !info.supported) continue;
        if (check(info.name, seed, count) != 0) return 1;
        printf("%s%s\n", info.name, info.chosen ? " chosen" : "");
    }
    return 0;
}
