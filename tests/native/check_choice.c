/* Which kernels a CPU with the features named as arguments gets. The table is the library's own; the kernels are empty,
 * since only their addresses are asked for. Prints a line `family set: kernel` for every set that can be named. */
#include <stdio.h>
#include <string.h>

#define EK_HAVE_NEON
#define EK_HAVE_NEON_DOTPROD
#define EK_HAVE_AVX2
#define EK_HAVE_AVX512
#define EK_HAVE_AVX512_VNNI
#define ek_cpu_features features_of_the_arguments
#include "kernels.c"

static const char *const features_by_name[EK_CPU_COUNT] = {
    "popcnt", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vpopcntdq", "avxvnni",
    "neon", "dotprod", "fp16",
};

const ek_xnor_kernel ek_xnor_reference, ek_xnor_portable, ek_xnor_avx2, ek_xnor_avx512, ek_xnor_neon;
const ek_dot8_kernel ek_dot8_reference, ek_dot8_portable, ek_dot8_avx2, ek_dot8_avx512, ek_dot8_neon,
    ek_dot8_neon_dotprod;

static const struct {
    const void *kernel;
    const char *name;
} names[] = {
    {&ek_xnor_reference, "reference"}, {&ek_xnor_portable, "portable"},         {&ek_xnor_avx2, "avx2"},
    {&ek_xnor_avx512, "avx512"},       {&ek_xnor_neon, "neon"},                 {&ek_dot8_reference, "reference"},
    {&ek_dot8_portable, "portable"},   {&ek_dot8_avx2, "avx2"},                 {&ek_dot8_avx512, "avx512"},
    {&ek_dot8_neon, "neon"},           {&ek_dot8_neon_dotprod, "neon_dotprod"},
};

static uint64_t given;

uint64_t ek_cpu_features(void) { return given; }

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        for (int bit = 0; bit < EK_CPU_COUNT; bit++)
            if (strcmp(argv[i], features_by_name[bit]) == 0) given |= EK_BIT(bit);
    for (int32_t family = EK_FAMILY_XNOR; family <= EK_FAMILY_DOT8; family++)
        for (int32_t set = -1; set < SETS; set++) {
            const void *found = ek_find_kernel(family, set < 0 ? NULL : sets[set].name);
            for (size_t i = 0; i < sizeof names / sizeof *names; i++)
                if (found != NULL && names[i].kernel == found)
                    printf("%s %s: %s\n", families[family], set < 0 ? "-" : sets[set].name, names[i].name);
        }
    return 0;
}
