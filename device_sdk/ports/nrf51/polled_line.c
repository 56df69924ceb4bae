/* SPDX-License-Identifier: Apache-2.0
 *
 * The serial line without rings and interrupts: programs that run a model have no RAM to spare and hear nothing.
 */
#include <stdbool.h>

#include "chip.h"
#include "nrf51.h"
#include "registers.h"

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    uint32_t count = 0;
    while (count < capacity && UART0_EVENT_RECEIVED != 0U) {
        UART0_EVENT_RECEIVED = 0U; /* before the byte is taken: the next one sets it again */
        bytes[count++] = (uint8_t)UART0_RECEIVE;
    }
    return (int32_t)count;
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    static bool is_sending;
    uint32_t count = 0;
    while (count < size && (!is_sending || UART0_EVENT_SENT != 0U)) {
        UART0_EVENT_SENT = 0U;
        UART0_SEND = bytes[count++];
        is_sending = true;
    }
    return (int32_t)count;
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};

void chip_start(void) {
    nrf51_clock_start();
    nrf51_uart_start();
}
