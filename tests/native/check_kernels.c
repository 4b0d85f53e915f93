/* Run every kernel that this CPU can run against the reference; print their names, or the first difference. */
#include <stdio.h>
#include <stdlib.h>

#include "edgekit_native.h"

enum { ROWS = 7, MOST = 1300, WORDS = (MOST + 63) / 64 };

static uint64_t state = 88172645463325252u;

static uint64_t draw(void) { /* Marsaglia 2003, xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int check(int32_t kernel, const char *name) {
    static uint64_t x[WORDS], w[ROWS * WORDS];
    for (int64_t n = 1; n <= MOST; n++) {
        int32_t wanted[ROWS], got[ROWS];
        for (int i = 0; i < WORDS; i++) x[i] = draw();
        for (int i = 0; i < ROWS * WORDS; i++) w[i] = draw();
        if (ek_binary_dense(x, w, wanted, ROWS, n, 0) != EK_OK || ek_binary_dense(x, w, got, ROWS, n, kernel) != EK_OK)
            return 1;
        for (int r = 0; r < ROWS; r++)
            if (wanted[r] != got[r]) {
                printf("%s: n %d row %d: wanted %d, got %d\n", name, (int)n, r, (int)wanted[r], (int)got[r]);
                return 1;
            }
    }
    return 0;
}

int main(void) {
    for (int32_t i = 0; i < ek_kernel_count(); i++) {
        ek_kernel_info info;
        ek_kernel_get(i, &info);
        if (!info.supported) continue;
        if (check(i, info.name) != 0) return 1;
        printf("%s%s\n", info.name, info.chosen ? " chosen" : "");
    }
    for (int32_t bit = 0; ek_cpu_feature_name(bit) != NULL; bit++)
        if (ek_cpu_features() >> bit & 1) printf("cpu %s\n", ek_cpu_feature_name(bit));
    return 0;
}
