/* Plain C for any CPU: the words' ones are counted in parallel inside the word. */
#include "kernels.h"

/* Warren, Hacker's Delight, 2nd edition, figure 5-2, in 64 bits. */
static inline uint32_t ek_popcount(uint64_t v) {
    v -= v >> 1 & UINT64_C(0x5555555555555555);
    v = (v & UINT64_C(0x3333333333333333)) + (v >> 2 & UINT64_C(0x3333333333333333));
    v = (v + (v >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (uint32_t)(v * UINT64_C(0x0101010101010101) >> 56);
}

enum { EK_WORDS = 1 };
typedef uint32_t ek_acc;

static inline ek_acc ek_zero(void) { return 0; }
static inline ek_acc ek_add(ek_acc acc, const uint64_t *x, const uint64_t *w) { return acc + ek_popcount(*x ^ *w); }
static inline uint32_t ek_total(ek_acc acc) { return acc; }

#define EK_KERNEL ek_bdense_portable
#include "bdense_kernel.inc"
