/* Arm MPS2+ with the FPGA images AN385 (Cortex-M3), AN386 (M4) and AN500 (M7), which QEMU emulates as mps2-an*: its
 * first UART (Arm DDI 0479, CMSDK APB UART). Memory: 4 MB at 0, which stands for flash, 4 MB at 0x20000000. */
#include <stdint.h>

#include "board.h"

typedef struct {
    volatile uint32_t data, state, control, interrupt, divider;
} uart;

enum { SEND_FULL = 1, RECEIVED = 2, ENABLE_BOTH = 3, LEAST_DIVIDER = 16 };

static uart *const line = (uart *)UINT32_C(0x40004000);

void board_start(void) {
    line->divider = LEAST_DIVIDER;
    line->control = ENABLE_BOTH;
}

static unsigned char get(void) {
    while ((line->state & RECEIVED) == 0) {}
    return (unsigned char)line->data;
}

static void put(unsigned char byte) {
    while ((line->state & SEND_FULL) != 0) {}
    line->data = byte;
}

#include "serial.h"
