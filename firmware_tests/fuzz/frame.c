/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes of a serial line. The first byte says in pieces of how many bytes they come. Each frame that is found lies in
 * the receive buffer; sent by another line, it is found there again.
 */
#include "fuzz.h"
#include "link.h"

enum { CAPACITY = FEDMOTE_BODY_MAX + 128 };

struct wire {
    const uint8_t *bytes;
    size_t left;
    uint32_t piece;
    uint8_t *sent; /* [CAPACITY + 16] or NULL */
    uint32_t sent_size;
};

static int32_t wire_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct wire *wire = context;
    uint32_t count = capacity < wire->piece ? capacity : wire->piece;
    count = count < wire->left ? count : (uint32_t)wire->left;
    if (count > 0) {
        memcpy(bytes, wire->bytes, count);
        wire->bytes += count;
        wire->left -= count;
    }
    return (int32_t)count;
}

static int32_t wire_write(void *context, const uint8_t *bytes, uint32_t size) {
    struct wire *wire = context;
    must(wire->sent_size + size <= CAPACITY + 16, "a frame is longer than the buffer it was made in");
    memcpy(wire->sent + wire->sent_size, bytes, size);
    wire->sent_size += size;
    return (int32_t)size;
}

static struct fedmote_line open_line(struct fedmote_port *port, uint8_t *receive, uint8_t *transmit) {
    struct fedmote_line line = {.port = port, .receive = receive, .transmit = transmit, .capacity = CAPACITY};
    fedmote_serial_link.open(&line);
    return line;
}

/* The next frame of what is left, or false. */
static bool next_frame(struct fedmote_line *line, const struct wire *wire, struct fedmote_frame *frame) {
    for (;;) {
        size_t left = wire->left;
        int32_t status = fedmote_serial_link.poll(line, 0, frame);
        if (status == FEDMOTE_LINK_FRAME) {
            must(frame->body >= line->receive && frame->body + frame->size <= line->receive + CAPACITY,
                 "a body outside its buffer");
            must(frame->channel <= FEDMOTE_CHANNEL_CELL, "a channel that does not exist");
            return true;
        }
        must(status == FEDMOTE_OK, "a status that poll does not have");
        if (wire->left == 0 && left == 0) {
            return false;
        }
    }
}

/* Sends a frame over a line of its own and finds it again. */
static void send_again(const struct fedmote_frame *frame) {
    uint8_t *sent = block_of(NULL, CAPACITY + 16);
    uint8_t *receive = block_of(NULL, CAPACITY);
    uint8_t *transmit = block_of(NULL, CAPACITY);
    struct wire wire = {.piece = CAPACITY, .sent = sent};
    struct fedmote_port port = {.context = &wire, .stream_read = wire_read, .stream_write = wire_write};
    struct fedmote_line line = open_line(&port, receive, transmit);
    struct fedmote_frame again;
    must(!next_frame(&line, &wire, &again), "a frame out of nothing");
    memcpy(transmit + FEDMOTE_BODY_OFFSET, frame->body, frame->size);
    fedmote_serial_link.send(&line, frame->channel, frame->kind, frame->size);
    must(!next_frame(&line, &wire, &again), "a frame out of nothing");
    wire.bytes = sent;
    wire.left = wire.sent_size;
    must(next_frame(&line, &wire, &again), "a frame of our own is not found");
    must(again.channel == frame->channel && again.kind == frame->kind && again.size == frame->size &&
             memcmp(again.body, frame->body, frame->size) == 0,
         "a frame of our own is another one");
    free(transmit);
    free(receive);
    free(sent);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    uint8_t *receive = block_of(NULL, CAPACITY);
    uint8_t *transmit = block_of(NULL, CAPACITY);
    struct wire wire = {.bytes = data + 1, .left = size - 1, .piece = 1U + data[0]};
    struct fedmote_port port = {.context = &wire, .stream_read = wire_read, .stream_write = wire_write};
    struct fedmote_line line = open_line(&port, receive, transmit);
    struct fedmote_frame frame;
    while (next_frame(&line, &wire, &frame)) {
        if (frame.size <= FEDMOTE_BODY_MAX) { /* the buffer holds a little more */
            send_again(&frame);
        }
    }
    free(transmit);
    free(receive);
    return 0;
}
