/* SPDX-License-Identifier: Apache-2.0
 *
 * Inference on an STM32F405: runs the package of the package region over the samples region as soon as it starts and
 * sends the results as one blob over the serial line: `data` messages with handle 0 in serial frames, in order. What
 * cannot be run ends in `refuse` with the reason.
 */
#include <string.h>

#include "fedmote_board.h"
#include "link.h"
#include "run.h"
#include "stm32f4.h"
#include "wire.h"

#define CHUNK_BYTES (FEDMOTE_BODY_MAX - FEDMOTE_LIMIT_CHUNK_OVERHEAD)
#define LINE_BYTES ((FEDMOTE_BODY_MAX + 128U + 15U) / 16U * 16U)

struct sender {
    struct fedmote_line line;
    uint32_t offset; /* bytes of the blob that were sent */
};

static int32_t port_stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return stm32_uart_read(bytes, capacity);
}

static int32_t port_stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return stm32_uart_write(bytes, size);
}

static const struct fedmote_port port = {.stream_read = port_stream_read, .stream_write = port_stream_write};

/* Sends a message and waits until the line has taken it: this image has nothing else to do. */
static int32_t send_message(struct sender *sender, const struct fedmote_message *message) {
    struct fedmote_line *line = &sender->line;
    const int32_t size = fedmote_encode(message, line->transmit + FEDMOTE_BODY_OFFSET, FEDMOTE_BODY_MAX);
    if (size < 0) {
        return size;
    }
    fedmote_serial_link.send(line, FEDMOTE_CHANNEL_COORDINATOR, message->kind, (uint32_t)size);
    while (line->tx_begin != line->tx_end) {
        const int32_t status = fedmote_line_flush(line);
        if (status != FEDMOTE_OK) {
            return status;
        }
    }
    return FEDMOTE_OK;
}

static int32_t emit(void *context, const uint8_t *result, uint32_t size) {
    struct sender *sender = context;
    static struct fedmote_message message; /* too large for a small stack */
    int32_t status = FEDMOTE_OK;
    while (status == FEDMOTE_OK && size > 0U) {
        const uint32_t part = size < CHUNK_BYTES ? size : CHUNK_BYTES;
        fedmote_message_begin(&message, FEDMOTE_KIND_DATA);
        fedmote_message_number(&message, FEDMOTE_FIELD_HANDLE, 0U);
        fedmote_message_number(&message, FEDMOTE_FIELD_OFFSET, sender->offset);
        fedmote_message_string(&message, FEDMOTE_FIELD_DATA, result, part);
        status = send_message(sender, &message);
        sender->offset += part;
        result += part;
        size -= part;
    }
    return status;
}

static void refuse(struct sender *sender, int32_t status) {
    static struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_REFUSE);
    fedmote_message_number(&message, FEDMOTE_FIELD_STATUS, (uint32_t)-status);
    (void)send_message(sender, &message); /* a line that takes nothing leaves nobody to tell */
}

int main(void) {
    static uint8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    static uint8_t receive[LINE_BYTES], transmit[LINE_BYTES] __attribute__((aligned(16)));
    static struct sender sender = {
        .line = {.port = &port, .receive = receive, .transmit = transmit, .capacity = LINE_BYTES}};
    struct samples_region samples;

    stm32_start();
    fedmote_serial_link.open(&sender.line);
    int32_t status = samples_region_open(&samples, (const uint8_t *)FEDMOTE_BOARD_REGIONS_SAMPLES_ADDRESS,
                                         FEDMOTE_BOARD_REGIONS_SAMPLES_BYTES, UINT32_MAX);
    if (status == FEDMOTE_OK) {
        status = run_samples((const uint8_t *)FEDMOTE_BOARD_REGIONS_PACKAGE_ADDRESS,
                             FEDMOTE_BOARD_REGIONS_PACKAGE_BYTES, &samples, memory, sizeof memory, emit, &sender);
    }
    if (status != FEDMOTE_OK) {
        refuse(&sender, status);
    }
    for (;;) {
        stm32_sleep();
    }
}
