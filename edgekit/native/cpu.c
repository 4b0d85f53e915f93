/* Which instruction sets this CPU, under this operating system, can run. */
#include "edgekit_native.h"
#include "kernels.h"

static const char *const names[EK_CPU_COUNT] = {
    [EK_CPU_POPCNT] = "popcnt",
    [EK_CPU_AVX2] = "avx2",
    [EK_CPU_FMA] = "fma",
    [EK_CPU_AVX512F] = "avx512f",
    [EK_CPU_AVX512BW] = "avx512bw",
    [EK_CPU_AVX512VL] = "avx512vl",
    [EK_CPU_AVX512VNNI] = "avx512vnni",
    [EK_CPU_AVX512VPOPCNTDQ] = "avx512vpopcntdq",
    [EK_CPU_AVXVNNI] = "avxvnni",
    [EK_CPU_NEON] = "neon",
    [EK_CPU_DOTPROD] = "dotprod",
    [EK_CPU_FP16] = "fp16",
};

const char *ek_cpu_feature_name(int32_t bit) { return bit >= 0 && bit < EK_CPU_COUNT ? names[bit] : NULL; }

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

static uint64_t bit_if(unsigned reg, int bit, int feature) {
    return (uint64_t)((reg >> bit) & 1u) << feature;
}

/* The register files the operating system saves: bits 1-2 for AVX, 5-7 as well for AVX-512. */
static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

uint64_t ek_cpu_features(void) {
    unsigned a, b, c, d;
    uint64_t found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    found |= bit_if(c, 23, EK_CPU_POPCNT);
    const int osxsave = (c >> 27) & 1;
    const uint32_t saved = osxsave ? saved_registers() : 0;
    if ((saved & 0x06) != 0x06) return found;
    found |= bit_if(c, 12, EK_CPU_FMA);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const unsigned subleaves = a;
    found |= bit_if(b, 5, EK_CPU_AVX2);
    if ((saved & 0xe0) == 0xe0) {
        found |= bit_if(b, 16, EK_CPU_AVX512F);
        found |= bit_if(b, 30, EK_CPU_AVX512BW);
        found |= bit_if(b, 31, EK_CPU_AVX512VL);
        found |= bit_if(c, 11, EK_CPU_AVX512VNNI);
        found |= bit_if(c, 14, EK_CPU_AVX512VPOPCNTDQ);
    }
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found |= bit_if(a, 4, EK_CPU_AVXVNNI);
    return found;
}

#elif defined(__linux__) && (defined(__aarch64__) || defined(__arm__))

#include <sys/auxv.h>

/* Linux arch/arm64 and arch/arm uapi/asm/hwcap.h; written out because older headers lack the newer bits. */
#if defined(__aarch64__)
enum { HAS_NEON = 1, HAS_FP16 = 10, HAS_DOTPROD = 20 };
#else
enum { HAS_NEON = 12, HAS_FP16 = 23, HAS_DOTPROD = 24 };
#endif

uint64_t ek_cpu_features(void) {
    const unsigned long caps = getauxval(AT_HWCAP);
    uint64_t found = 0;
    if (caps >> HAS_NEON & 1) found |= EK_BIT(EK_CPU_NEON);
    if (caps >> HAS_FP16 & 1) found |= EK_BIT(EK_CPU_FP16);
    if (caps >> HAS_DOTPROD & 1) found |= EK_BIT(EK_CPU_DOTPROD);
    return found;
}

#else

uint64_t ek_cpu_features(void) { return 0; }

#endif
