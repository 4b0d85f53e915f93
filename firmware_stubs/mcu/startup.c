/* From reset to main on any Cortex-M: vectors, memory, floating-point unit. A vendor's own start-up code can stand for
 * it; it has no clocks to set. */
#include "startup.h"

#include <stdint.h>

/* cortex_m.ld says where. */
extern uint32_t data_from[], data_start[], data_end[], bss_start[], bss_end[], stack_bottom[], stack_top[];

int main(void);

enum { PAINT = 0xa5 };

size_t stack_used(void) {
    const unsigned char *at = (const void *)stack_bottom, *top = (const void *)stack_top;
    while (at < top && *at == PAINT) at++;
    return (size_t)(top - at);
}

/* Below its own frame. */
static __attribute__((noinline)) void paint_stack(void) {
    volatile unsigned char *at = __builtin_frame_address(0);
    for (at -= 64; at >= (unsigned char *)stack_bottom; at--) *at = PAINT;
}

static __attribute__((noreturn)) void stop(void) {
    for (;;) __asm__ volatile("wfi");
}

__attribute__((noreturn)) void reset(void) {
#ifdef __ARM_FP
    *(volatile uint32_t *)UINT32_C(0xe000ed88) |= UINT32_C(0xf) << 20; /* CPACR: coprocessors 10 and 11 */
    __asm__ volatile("dsb\n isb");
#endif
    const uint32_t *from = data_from;
    for (uint32_t *to = data_start; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    paint_stack();
    main();
    stop();
}

/* Arm v6-M and v7-M Architecture Reference Manuals, B1.5: the stack, then exceptions 1 to 15. */
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {
    stack_top,
    {reset, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop},
};
