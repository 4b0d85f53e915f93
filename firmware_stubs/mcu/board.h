/* What main.c needs of a board. board.c holds weak ones that read zeros and write nowhere: a board's own file replaces
 * them (boards/). The line is any byte stream: a UART, USB, RTT. */
#ifndef EDGEKIT_BOARD_H
#define EDGEKIT_BOARD_H

#include <stdbool.h>
#include <stddef.h>

void board_start(void);

/* The next input's bytes, all of them; waits. false: there will be no more. */
bool board_read(void *to, size_t size);

void board_write(const void *from, size_t size);

/* Text for people: part of a line, or its end. */
void board_say(const char *text);

#endif
