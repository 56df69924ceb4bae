/* SPDX-License-Identifier: Apache-2.0
 *
 * Arm's development boards (MPS2, MPS3) with peripherals of the Cortex-M System Design Kit, as an emulator models them:
 * serial line by polling, and counters. No clock and no pin needs setting up; board.toml has the addresses.
 */
#include "chip.h"

#include "core.h"
#include "fedmote_board.h"

#define UART(offset) CORE_REGISTER(FEDMOTE_BOARD_PERIPHERALS_UART + (offset))
#define UART_DATA UART(0x00U)
#define UART_STATE UART(0x04U)
#define UART_CONTROL UART(0x08U)
#define UART_DIVIDER UART(0x10U)
#define UART_STATE_SENDING 1U
#define UART_STATE_RECEIVED 2U
#define UART_CONTROL_SEND_RECEIVE 3U
#define UART_LEAST_DIVIDER 16U

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    uint32_t count = 0;
    while (count < capacity && (UART_STATE & UART_STATE_RECEIVED) != 0U) {
        bytes[count++] = (uint8_t)UART_DATA;
    }
    return (int32_t)count;
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    uint32_t count = 0;
    while (count < size && (UART_STATE & UART_STATE_SENDING) == 0U) {
        UART_DATA = bytes[count++];
    }
    return (int32_t)count;
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};

void chip_start(void) {
    UART_DIVIDER = UART_LEAST_DIVIDER;
    UART_CONTROL = UART_CONTROL_SEND_RECEIVE;
}

void chip_sleep(void) { __asm volatile("wfi" ::: "memory"); }

__attribute__((noreturn)) void chip_halt(void) {
    for (;;) {
        chip_sleep();
    }
}
