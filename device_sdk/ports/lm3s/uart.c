/* SPDX-License-Identifier: Apache-2.0
 *
 * UART0 with its FIFOs and two rings. The receiver's interrupt fills a ring; the transmitter's FIFO is filled by the
 * writer, and where it is full the interrupt goes on when half of it has left.
 */
#include "chip.h"
#include "fedmote_board.h"
#include "lm3s.h"
#include "registers.h"
#include "ring.h"

static volatile uint8_t received_bytes[1024], sending_bytes[1024];
static struct ring received = RING_OVER(received_bytes), sending = RING_OVER(sending_bytes);

/* Only with the transmit interrupt off, or from it: the sending ring has one consumer at a time. */
static void send_while_free(void) {
    uint8_t byte;
    while ((UART0_FLAGS & UART_FLAGS_FULL) == 0U && ring_take(&sending, &byte)) {
        UART0_DATA = byte;
    }
}

void uart0_handler(void);

void uart0_handler(void) {
    while ((UART0_FLAGS & UART_FLAGS_EMPTY) == 0U) {
        /* A full ring loses the byte; the frame that it was part of is asked for again. */
        (void)ring_put(&received, (uint8_t)UART0_DATA);
    }
    UART0_CLEAR = UART_RECEIVED | UART_RECEIVE_PAUSE;
    if ((UART0_MASK & UART_SENDABLE) != 0U) {
        UART0_CLEAR = UART_SENDABLE;
        send_while_free();
        if (ring_is_empty(&sending)) {
            UART0_MASK &= ~UART_SENDABLE;
        }
    }
}

void lm3s_uart_start(uint32_t core_hz) {
    SYSCTL_RCGC1 |= SYSCTL_RCGC1_UART0;
    SYSCTL_RCGC2 |= SYSCTL_RCGC2_GPIOA;
    (void)SYSCTL_RCGC2; /* three clocks until the registers behind a gate answer */
    (void)SYSCTL_RCGC2;
    GPIO_ALTERNATE(GPIOA_BASE) |= 3U;
    GPIO_PULL_UP(GPIOA_BASE) |= 1U; /* an open input reads as idle */
    GPIO_DIGITAL(GPIOA_BASE) |= 3U;
    /* The divisor has 6 bits behind the point: core / (16 * baud) * 64. */
    const uint32_t divisor = (4U * core_hz + FEDMOTE_BOARD_UART_BAUD / 2U) / FEDMOTE_BOARD_UART_BAUD;
    UART0_CONTROL = 0U;
    UART0_INTEGER_DIVISOR = divisor / 64U;
    UART0_FRACTION_DIVISOR = divisor % 64U;
    UART0_LINE = UART_LINE_8_BITS | UART_LINE_FIFOS;
    UART0_LEVELS = UART_LEVELS_HALF;
    UART0_MASK = UART_RECEIVED | UART_RECEIVE_PAUSE;
    UART0_CONTROL = UART_CONTROL_ON;
    NVIC_ENABLE(UART0_INTERRUPT / 32U) = 1U << (UART0_INTERRUPT % 32U);
}

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return ring_read(&received, bytes, capacity);
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    const int32_t count = ring_write(&sending, bytes, size);
    UART0_MASK &= ~UART_SENDABLE;
    send_while_free();
    if (!ring_is_empty(&sending)) {
        UART0_MASK |= UART_SENDABLE;
    }
    return count;
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};
