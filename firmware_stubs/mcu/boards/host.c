/* This machine: inputs from stdin, outputs to stdout, text to stderr. */
#include <stdio.h>

#include "board.h"

void board_start(void) {}

bool board_read(void *to, size_t size) { return fread(to, 1, size, stdin) == size; }

void board_write(const void *from, size_t size) {
    fwrite(from, 1, size, stdout);
    fflush(stdout);
}

void board_say(const char *text) { fputs(text, stderr); }
