/* The whole C interface of edgekit's native library. No other library's headers. */
#ifndef EDGEKIT_NATIVE_H
#define EDGEKIT_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define EK_ABI_VERSION 2
#define EK_API __attribute__((visibility("default")))

/* What functions return: EK_OK or one of the errors. */
#define EK_OK 0
#define EK_BAD_ARGUMENT (-1) /* a null pointer, a size out of range, no such index */
#define EK_NO_KERNEL (-2)    /* this kernel is not built here, or this CPU cannot run it */
#define EK_BAD_PLAN (-3)     /* not a plan that this version runs; the text says why */

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
    int32_t chosen;    /* 1: what runs where no instruction set is named */
} ek_kernel_info;

EK_API int32_t ek_kernel_count(void);
EK_API int32_t ek_kernel_get(int32_t index, ek_kernel_info *info);

/* --- plans: plan.h describes the file ---------------------------------------------------------------------------
 *
 * Nothing here allocates: the caller gives the arena. The plan's bytes must stay where they are, 8-byte aligned and
 * unchanged, as long as what was opened on them is used; they may lie in flash. One opened plan is for one thread.
 */
typedef struct ek_plan ek_plan; /* lives at the arena's beginning */

enum {
    EK_PLAN_KEEP = 1, /* every tensor has a place of its own in the arena, so that ek_plan_codes can read it */
};

/* Whether these bytes are a plan, with everything in bounds: EK_OK, or EK_BAD_PLAN and one line in why. */
EK_API int32_t ek_plan_check(const void *plan, size_t size, char *why, size_t why_size);

/* Bytes that ek_plan_open needs at a 64-byte aligned address; 0 where the plan is not one. kernels: the name of an
 * instruction set ("reference", "portable", "avx2", "avx512", "neon"), or NULL for the fastest here. A family without a
 * kernel of that name takes the one before it in the table. */
EK_API size_t ek_plan_arena(const void *plan, size_t size, const char *kernels, uint32_t options);

/* Check the plan, lay out its tensors, prepare its weights. EK_OK, EK_BAD_PLAN, EK_NO_KERNEL, EK_BAD_ARGUMENT (arena
 * too small or not aligned). */
EK_API int32_t ek_plan_open(const void *plan, size_t size, void *arena, size_t arena_size, const char *kernels,
                            uint32_t options, ek_plan **opened);

/* Run once. inputs, outputs: one array for each tensor with that flag, in the order of their indices, laid out as
 * plan.h says; each is read or written whole. */
EK_API int32_t ek_plan_run(ek_plan *opened, const void *const *inputs, void *const *outputs);

/* What a tensor held in the last run, as h * w * c int32: codes of bits (see ek_coding) and integers as they are,
 * floats as their bits. EK_BAD_ARGUMENT without EK_PLAN_KEEP, for no such tensor, or another count. */
EK_API int32_t ek_plan_codes(const ek_plan *opened, int32_t tensor, int32_t *codes, int64_t count);

#endif
