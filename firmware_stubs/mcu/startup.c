/* From reset to main on any Cortex-M: vectors, memory, floating-point unit. A vendor's own start-up code can stand for
 * it; it has no clocks to set. */
#include "startup.h"

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

/* --- SysTick (Arm v7-M Architecture Reference Manual, B3.3): 24 bits that count down; optional on v6-M --------- */

enum { LARGEST = 0xffffff, STOP = 0, COUNT_CYCLES_AND_INTERRUPT = 7 };

typedef struct {
    volatile uint32_t control, reload, value;
} counter;

static counter *const systick = (counter *)UINT32_C(0xe000e010);
static volatile uint32_t rounds;

static void next_round(void) { rounds++; }

void count_cycles(void) {
    systick->control = STOP;
    systick->reload = LARGEST;
    systick->value = 0;
    rounds = 0;
    systick->control = COUNT_CYCLES_AND_INTERRUPT;
}

uint32_t cycles(void) {
    uint32_t before, left;
    do {
        before = rounds;
        left = systick->value;
    } while (rounds != before);
    return systick->reload == 0 ? 0 : before * (LARGEST + UINT32_C(1)) + (LARGEST - left);
}

/* --- from reset to main ------------------------------------------------------------------------------------------- */

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
    {reset, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, stop, next_round},
};
