/* BBC micro:bit, first version: Nordic nRF51822 (Cortex-M0, 256 KB of flash, 16 KB of RAM), the UART behind its USB
 * socket, 115,200 baud without flow control (nRF51 Series Reference Manual 3.0, chapter 29). */
#include <stdint.h>

#include "board.h"

enum { SEND_PIN = 24, RECEIVE_PIN = 25, ENABLE_UART = 4, BAUD_115200 = 0x01d7e000 };

static volatile uint32_t *reg(uint32_t offset) { return (volatile uint32_t *)(UINT32_C(0x40002000) + offset); }

enum {
    START_RECEIVING = 0x000,
    START_SENDING = 0x008,
    RECEIVED = 0x108,
    SENT = 0x11c,
    ENABLE = 0x500,
    PIN_SENDING = 0x50c,
    PIN_RECEIVING = 0x514,
    RECEIVE_DATA = 0x518,
    SEND_DATA = 0x51c,
    BAUD_RATE = 0x524,
};

void board_start(void) {
    *reg(PIN_SENDING) = SEND_PIN;
    *reg(PIN_RECEIVING) = RECEIVE_PIN;
    *reg(BAUD_RATE) = BAUD_115200;
    *reg(ENABLE) = ENABLE_UART;
    *reg(START_RECEIVING) = 1;
    *reg(START_SENDING) = 1;
}

static unsigned char get(void) {
    while (*reg(RECEIVED) == 0) {}
    *reg(RECEIVED) = 0;
    return (unsigned char)*reg(RECEIVE_DATA);
}

static void put(unsigned char byte) {
    *reg(SENT) = 0;
    *reg(SEND_DATA) = byte;
    while (*reg(SENT) == 0) {}
}

#include "serial.h"
