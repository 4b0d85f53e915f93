/* Slow and obvious: one value at a time. Every other kernel is tested against this file. */
#include "kernels.h"

static int value(const uint64_t *words, size_t i) { return (words[i / 64] >> (i % 64)) & 1 ? 1 : -1; }

static void bdense(const uint64_t *x, const uint64_t *w, int32_t *out, size_t rows, size_t n) {
    const size_t words = (n + 63) / 64;
    for (size_t r = 0; r < rows; r++) {
        int32_t sum = 0;
        for (size_t i = 0; i < n; i++) sum += value(x, i) * value(w + r * words, i);
        out[r] = sum;
    }
}

const ek_bdense_kernel ek_bdense_reference = {bdense};
