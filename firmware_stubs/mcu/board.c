/* No board: weak functions that a board's file replaces. Inputs stay as they are, outputs stay where they are. */
#include "board.h"

__attribute__((weak)) void board_start(void) {}

__attribute__((weak)) bool board_read(void *to, size_t size) {
    (void)to;
    (void)size;
    return true;
}

__attribute__((weak)) void board_write(const void *from, size_t size) {
    (void)from;
    (void)size;
}

__attribute__((weak)) void board_say(const char *text) { (void)text; }
