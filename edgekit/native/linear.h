/* Between the executor of plans (execute.c) and the kernels of its linear operators: two families, "xnor" and "dot8".
 *
 * The executor knows plans, borders, codings and thresholds; a kernel knows its instruction set. The executor reduces
 * every coding to sums of popcounts or of byte products and hands over tables, so a kernel has no case for a coding.
 */
#ifndef EDGEKIT_LINEAR_H
#define EDGEKIT_LINEAR_H

#include <stddef.h>
#include <stdint.h>

enum { EK_MAX_PASSES = 9, EK_MAX_OUT_PLANES = 2, EK_BLOCK = 64 /* output channels that tables are padded to */ };

/* Where the sums of one layer go: exactly one of bits, sums, scaled.
 *
 * A pixel of class k (class_of_row[y] + class_of_column[x]) takes row k of the tables. Classes exist because padding
 * adds other constants at the borders; a layer without such has one class.
 *   bits     code = how many of `levels` limits Q keeps to (Q <= limit; Q falls where the sum rises). Level t of class
 *            k stands at limits[(k * levels + t) * padded]; limits fall with t. planes: levels 1: b0. levels 2
 *            (ternary): b0 = first, b1 = second. levels 3: the count in binary. Written as whole 64-bit words; bits
 *            beyond out_c are 0. Limits of family xnor, whose Q is never negative, are -1 (never) or more.
 *   sums     sum = (constant2[k][c] - gain2 * Q) / 2, always even before the division; gain2 is 1, 2 or 4
 *   scaled   (float)sum * scale[c] + bias[c]: product and sum are rounded one by one, never fused, on every machine
 */
typedef struct {
    uint64_t *bits;
    ptrdiff_t bits_row, bits_pixel; /* in words, between output rows and pixels */
    int32_t bits_words;             /* words of one plane; planes follow one another within a pixel */
    int32_t levels;
    const int32_t *limits;

    int32_t *sums; /* h, w, c without gaps, as scaled */
    float *scaled;
    const int32_t *constant2;
    int32_t gain2;
    const float *scale, *bias;

    int32_t padded; /* out_c rounded up to EK_BLOCK: the length of a row of limits and constant2 */
} ek_epilogue;

typedef struct {
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w;
    const uint16_t *class_of_row, *class_of_column;
    ek_epilogue to;
} ek_window_layer;

/* --- family "xnor": bits times bits ---------------------------------------------------------------------------
 *
 * Q(pixel, c) = sum over passes of 2^weight * popcount(input plane xor weight plane), over the window's words.
 *
 * in: the word at the first window's upper left corner, border included. Window position (ky, kx) of output (y, x),
 * plane p, word j:  in[(y*stride_h + ky) * in_row + (x*stride_w + kx) * in_pixel + p * words + j].
 * Unused bits are 0 in inputs and in weights.
 */
typedef struct {
    uint8_t in_plane, weight_plane;
    uint8_t weight; /* power of two; passes stand heaviest first, so that sums can be doubled on the way */
} ek_pass;

typedef struct {
    ek_window_layer layer;
    const uint64_t *in;
    ptrdiff_t in_row, in_pixel; /* in words */
    int32_t in_c, words, in_planes;
    int32_t weight_planes;
    int32_t passes;
    ek_pass pass[EK_MAX_PASSES];
    const void *packed; /* what `pack` made, or the plan's own rows where pack_size is 0 */
} ek_xnor_layer;

/* Give a weight: bit (k) of plane `plane` of output channel `channel`; k = (ky * kernel_w + kx) * in_c + c. rows points
 * at ceil(terms/32) 32-bit words per plane; see ek_plan_linear, after codings became bipolar planes. */
typedef struct {
    const uint32_t *rows; /* [out_c][weight_planes][ceil(kernel_h * kernel_w * in_c / 32)] */
} ek_xnor_weights;

typedef struct {
    /* Bytes of prepared weights, 64-byte aligned; 0: run reads the rows as they are in the plan (flash). */
    size_t (*pack_size)(const ek_xnor_layer *layer);
    void (*pack)(const ek_xnor_layer *layer, const ek_xnor_weights *weights, void *packed);
    /* Bytes that run may scribble on, 64-byte aligned; 0: none. */
    size_t (*scratch_size)(const ek_xnor_layer *layer);
    void (*run)(const ek_xnor_layer *layer, void *scratch);
} ek_xnor_kernel;

/* --- family "dot8": bytes times small integers ------------------------------------------------------------------
 *
 * Sum over the window of in (uint8) times weight (int8); Q = -sum, so that the epilogue is the same. Signed inputs come
 * with 128 added; the executor's tables take it out again.
 */
typedef struct {
    ek_window_layer layer;
    const uint8_t *in; /* [h][w][c] with its border, as above, in bytes */
    ptrdiff_t in_row, in_pixel;
    int32_t in_c;
    const void *packed;
} ek_dot8_layer;

typedef struct {
    size_t (*pack_size)(const ek_dot8_layer *layer);
    /* rows: [out_c][kernel_h * kernel_w * in_c] int8; the executor has turned bits into -1, 0, 1. */
    void (*pack)(const ek_dot8_layer *layer, const int8_t *rows, void *packed);
    size_t (*scratch_size)(const ek_dot8_layer *layer);
    void (*run)(const ek_dot8_layer *layer, void *scratch);
} ek_dot8_kernel;

#endif
