/* board_read, board_write and board_say for a board whose line takes and gives single bytes; included once, behind
 * `static unsigned char get(void)` and `static void put(unsigned char)`, which wait. */
#ifndef EDGEKIT_SERIAL_H
#define EDGEKIT_SERIAL_H

#include "board.h"

bool board_read(void *to, size_t size) {
    for (unsigned char *at = to; size > 0; size--) *at++ = get();
    return true;
}

void board_write(const void *from, size_t size) {
    for (const unsigned char *at = from; size > 0; size--) put(*at++);
}

void board_say(const char *text) {
    while (*text != 0) put((unsigned char)*text++);
}

#endif
