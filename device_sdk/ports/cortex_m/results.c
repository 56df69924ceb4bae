/* SPDX-License-Identifier: Apache-2.0 */
#include "results.h"

#include "chip.h"
#include "wire.h"

#define CHUNK_BYTES (FEDMOTE_BODY_MAX - FEDMOTE_LIMIT_CHUNK_OVERHEAD)
#define LINE_BYTES ((FEDMOTE_BODY_MAX + 128U + 15U) / 16U * 16U)

/* The message at hand: too large for a small stack. */
static struct fedmote_message message;

/* Waits until the line has taken the message: these programs have nothing else to do. */
static int32_t send_message(struct results *results) {
    struct fedmote_line *line = &results->line;
    const int32_t size = fedmote_encode(&message, line->transmit + FEDMOTE_BODY_OFFSET, FEDMOTE_BODY_MAX);
    if (size < 0) {
        return size;
    }
    fedmote_serial_link.send(line, FEDMOTE_CHANNEL_COORDINATOR, message.kind, (uint32_t)size);
    while (line->tx_begin != line->tx_end) {
        const int32_t status = fedmote_line_flush(line);
        if (status != FEDMOTE_OK) {
            return status;
        }
    }
    return FEDMOTE_OK;
}

struct results *results_open(void) {
    static uint8_t receive[LINE_BYTES], transmit[LINE_BYTES] __attribute__((aligned(16)));
    static struct results results = {
        .line = {.port = &chip_port, .receive = receive, .transmit = transmit, .capacity = LINE_BYTES}};
    fedmote_serial_link.open(&results.line);
    return &results;
}

int32_t results_emit(void *context, const uint8_t *bytes, uint32_t size) {
    struct results *results = context;
    int32_t status = FEDMOTE_OK;
    while (status == FEDMOTE_OK && size > 0U) {
        const uint32_t part = size < CHUNK_BYTES ? size : CHUNK_BYTES;
        fedmote_message_begin(&message, FEDMOTE_KIND_DATA);
        fedmote_message_number(&message, FEDMOTE_FIELD_HANDLE, 0U);
        fedmote_message_number(&message, FEDMOTE_FIELD_OFFSET, results->offset);
        fedmote_message_string(&message, FEDMOTE_FIELD_DATA, bytes, part);
        status = send_message(results);
        results->offset += part;
        bytes += part;
        size -= part;
    }
    return status;
}

void results_refuse(struct results *results, int32_t status) {
    fedmote_message_begin(&message, FEDMOTE_KIND_REFUSE);
    fedmote_message_number(&message, FEDMOTE_FIELD_STATUS, (uint32_t)-status);
    (void)send_message(results); /* a line that takes nothing leaves nobody to tell */
}
