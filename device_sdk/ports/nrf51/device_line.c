/* SPDX-License-Identifier: Apache-2.0
 *
 * The serial line with two rings, both served by the interrupt, and the tick: TIMER1, since this core has no timer of
 * its own.
 */
#include "chip.h"
#include "nrf51.h"
#include "registers.h"
#include "ring.h"

#define TICK_TIMER 1U
#define TICK_PRESCALER 4U /* 16 MHz by 2^4 */
#define TICK_COUNTS 1000U

/* The receiver's holds a window of chunks; a longer one comes again. */
static volatile uint8_t received_bytes[512], sending_bytes[256];
static struct ring received = RING_OVER(received_bytes), sending = RING_OVER(sending_bytes);
static volatile bool is_sending; /* a byte is under way, whose end is an event */
static volatile uint32_t milliseconds;

void uart0_handler(void);
void timer1_handler(void);

void timer1_handler(void) {
    TIMER_EVENT_COMPARE_0(TICK_TIMER) = 0U;
    milliseconds++;
}

static void send_next(void) {
    uint8_t byte;
    const bool is_taken = ring_take(&sending, &byte);
    is_sending = is_taken;
    if (is_taken) {
        UART0_SEND = byte;
    }
}

void uart0_handler(void) {
    while (UART0_EVENT_RECEIVED != 0U) {
        UART0_EVENT_RECEIVED = 0U; /* before the byte is taken: the next one sets it again */
        /* A full ring loses the byte; the frame that it was part of is asked for again. */
        (void)ring_put(&received, (uint8_t)UART0_RECEIVE);
    }
    if (UART0_EVENT_SENT != 0U) {
        UART0_EVENT_SENT = 0U;
        send_next();
    }
}

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return ring_read(&received, bytes, capacity);
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    const int32_t count = ring_write(&sending, bytes, size);
    if (!is_sending) { /* then no event comes that could take a byte meanwhile */
        send_next();
    }
    return count;
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};

uint32_t chip_now_ms(void) { return milliseconds; }

static void tick_start(void) {
    TIMER_BITS(TICK_TIMER) = TIMER_16_BITS;
    TIMER_PRESCALER(TICK_TIMER) = TICK_PRESCALER;
    TIMER_COMPARE_0(TICK_TIMER) = TICK_COUNTS;
    TIMER_SHORTCUTS(TICK_TIMER) = TIMER_CLEAR_AT_COMPARE_0;
    TIMER_INTERRUPTS_ON(TICK_TIMER) = TIMER_INTERRUPT_COMPARE_0;
    TIMER_TASK_CLEAR(TICK_TIMER) = 1U;
    TIMER_TASK_START(TICK_TIMER) = 1U;
}

void chip_start(void) {
    nrf51_clock_start();
    tick_start();
    nrf51_uart_start();
    UART0_INTERRUPTS_ON = UART_INTERRUPT_RECEIVED | UART_INTERRUPT_SENT;
    NVIC_ENABLE(0U) = 1U << UART0_INTERRUPT | 1U << TIMER1_INTERRUPT;
}
