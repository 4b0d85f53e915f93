/* The whole C interface of edgekit's native library. No other library's headers. */
#ifndef EDGEKIT_NATIVE_H
#define EDGEKIT_NATIVE_H

#include <stdint.h>

#define EK_ABI_VERSION 1
#define EK_API __attribute__((visibility("default")))

/* What functions return: EK_OK or one of the errors. */
#define EK_OK 0
#define EK_BAD_ARGUMENT (-1) /* a null pointer, a size out of range, no such index */
#define EK_NO_KERNEL (-2)    /* this kernel is not built here, or this CPU cannot run it */

/* EK_ABI_VERSION of the library that is loaded; a caller refuses any other. */
EK_API int32_t ek_abi_version(void);

/* The CPU's features as bits; bit i is called ek_cpu_feature_name(i), which is NULL past the last one. */
EK_API uint64_t ek_cpu_features(void);
EK_API const char *ek_cpu_feature_name(int32_t bit);

/* One row of the kernel table. Rows of one family stand slowest first; the last supported one is chosen. */
typedef struct {
    const char *family;
    const char *name;
    int32_t built;     /* 1: compiled into this library */
    int32_t supported; /* 1: built, and this CPU can run it */
    int32_t chosen;    /* 1: what EK_CHOSEN stands for */
} ek_kernel_info;

EK_API int32_t ek_kernel_count(void);
EK_API int32_t ek_kernel_get(int32_t index, ek_kernel_info *info);

#define EK_CHOSEN (-1)

/* Binary dense layer: out[r] = sum over i < n of x[i] * w[r][i], every value +1 or -1.
 *
 * Value i is bit i % 64 of word i / 64; 1 stands for +1, 0 for -1. x: ceil(n/64) words; w: rows * ceil(n/64) words,
 * row after row; bits past n are ignored. out: rows sums in -n..n. kernel: an index of the table, or EK_CHOSEN.
 * 1 <= n <= INT32_MAX, 0 <= rows.
 */
EK_API int32_t ek_binary_dense(const uint64_t *x, const uint64_t *w, int32_t *out, int64_t rows, int64_t n,
                               int32_t kernel);

#endif
