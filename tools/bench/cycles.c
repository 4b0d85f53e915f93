/* How many cycles a second this core makes, and what it can do in one: loops on registers alone, timed by binary.py.
 *
 * Each function makes `n` rounds. dependent_adds: 64 additions a round, each waiting for the one before it: a cycle
 * each on every x86 CPU. avx512_limit: 24 times xor, popcount, subtraction on 512 bits, as the AVX-512 kernel's inner
 * loop without its loads: 24 * 512 products of bits. avx2_limit: 16 look-ups and additions on 256 bits, as the AVX2
 * kernel's: 8 * 256 products. vnni_limit, fma_limit: 24 vpdpbusd
 * of 64 products, 24 vfmadd231ps of 16.
 */
#include <stdint.h>

void dependent_adds(int64_t n) {
    uint64_t a = 0;
    for (int64_t i = 0; i < n; i++)
        __asm__ volatile(".rept 64\n add $1, %0\n .endr" : "+r"(a));
}

__attribute__((target("avx512f"))) void avx512_limit(int64_t n) {
    for (int64_t i = 0; i < n; i++)
        __asm__ volatile(
            ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
            "vpxord %%zmm30, %%zmm31, %%zmm29\n vpopcntd %%zmm29, %%zmm29\n vpsubd %%zmm29, %%zmm\\k, %%zmm\\k\n .endr" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                  "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                  "xmm23", "xmm29");
}

__attribute__((target("avx512f"))) void vnni_limit(int64_t n) {
    for (int64_t i = 0; i < n; i++)
        __asm__ volatile(
            ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm\\k\n .endr" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                  "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                  "xmm23");
}

__attribute__((target("avx512f"))) void fma_limit(int64_t n) {
    for (int64_t i = 0; i < n; i++)
        __asm__ volatile(
            "vpxord %%zmm30, %%zmm30, %%zmm30\n"
            ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"
            "vfmadd231ps %%zmm30, %%zmm30, %%zmm\\k\n .endr" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                  "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                  "xmm23", "xmm30");
}

__attribute__((target("avx2"))) void avx2_limit(int64_t n) {
    for (int64_t i = 0; i < n; i++)
        __asm__ volatile(
            ".irp k,0,1,2,3,4,5,6,7,0,1,2,3,4,5,6,7\n"
            "vpshufb %%ymm14, %%ymm15, %%ymm13\n vpaddb %%ymm13, %%ymm\\k, %%ymm\\k\n .endr" ::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm13");
}
