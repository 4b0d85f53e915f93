/* What startup.c gives to the program. */
#ifndef EDGEKIT_STARTUP_H
#define EDGEKIT_STARTUP_H

#include <stddef.h>
#include <stdint.h>

/* The most bytes of stack that were in use at once since reset. */
size_t stack_used(void);

/* The processor's cycles since count_cycles, by SysTick; 0 where there is none. */
void count_cycles(void);
uint32_t cycles(void);

#endif
