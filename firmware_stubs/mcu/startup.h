/* What startup.c gives to the program. */
#ifndef EDGEKIT_STARTUP_H
#define EDGEKIT_STARTUP_H

#include <stddef.h>

/* The most bytes of stack that were in use at once since reset. */
size_t stack_used(void);

#endif
