/* SPDX-License-Identifier: Apache-2.0
 *
 * What a broker sends. The first byte says in pieces of how many bytes it comes, and whether the connection is made
 * first (an even number). A packet is taken, answered or ends the connection; a message lies in the receive buffer.
 */
#include "fuzz.h"
#include "link.h"

enum { CAPACITY = FEDMOTE_BODY_MAX + 128, STEP_MS = 50, POLLS = 60000 / STEP_MS, STILL = 4 };

static const uint8_t connack[] = {0x20, 2, 0, 0};
static const uint8_t suback[] = {0x90, 4, 0, 1, 1, 1};

struct broker {
    const uint8_t *bytes;
    size_t left;
    uint32_t piece;
    bool is_asked; /* CONNECT came: the client throws away what was there before */
    uint32_t now;
    uint32_t random;
};

static int32_t broker_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct broker *broker = context;
    if (!broker->is_asked) {
        return 0;
    }
    uint32_t count = capacity < broker->piece ? capacity : broker->piece;
    count = count < broker->left ? count : (uint32_t)broker->left;
    if (count > 0) {
        memcpy(bytes, broker->bytes, count);
        broker->bytes += count;
        broker->left -= count;
    }
    return (int32_t)count;
}

static int32_t broker_write(void *context, const uint8_t *bytes, uint32_t size) {
    struct broker *broker = context;
    must(size > 0 && bytes != NULL, "nothing is written");
    broker->is_asked = true;
    return (int32_t)(size < broker->piece ? size : broker->piece);
}

static uint32_t broker_now(void *context) { return ((struct broker *)context)->now; }

static uint32_t broker_random(void *context) {
    struct broker *broker = context;
    broker->random = broker->random * 1664525U + 1013904223U;
    return broker->random;
}

/* Polls until everything is read and nothing moves any more, at most for a minute of the device's time. */
static void serve(struct fedmote_line *line, struct broker *broker, const uint8_t *bytes, size_t size) {
    broker->bytes = bytes;
    broker->left = size;
    for (uint32_t i = 0; i < POLLS && (i < STILL || broker->left > 0 || line->has_moved); i++) {
        struct fedmote_frame frame;
        int32_t status = fedmote_mqtt_link.poll(line, broker->now, &frame);
        if (status == FEDMOTE_LINK_FRAME) {
            must(frame.body >= line->receive && frame.body + frame.size <= line->receive + CAPACITY,
                 "a body outside its buffer");
            must(frame.size <= FEDMOTE_BODY_MAX && frame.kind < FEDMOTE_KINDS_END, "a message that cannot be");
        } else {
            must(status == FEDMOTE_OK, "a status that poll does not have");
        }
        must(line->tx_begin <= line->tx_end && line->tx_end <= CAPACITY, "the transmit buffer is overrun");
        broker->now += line->has_moved ? 0 : STEP_MS;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    struct fedmote_identity identity = {.id = "b-1", .site = "lab", .board = "posix", .password = "secret"};
    struct broker broker = {.piece = 1U + data[0] / 2U};
    struct fedmote_port port = {
        .context = &broker,
        .now_ms = broker_now,
        .random = broker_random,
        .stream_read = broker_read,
        .stream_write = broker_write,
    };
    uint8_t *receive = block_of(NULL, CAPACITY);
    uint8_t *transmit = block_of(NULL, CAPACITY);
    struct fedmote_line line = {
        .port = &port, .identity = &identity, .receive = receive, .transmit = transmit, .capacity = CAPACITY};
    fedmote_mqtt_link.open(&line);
    serve(&line, &broker, NULL, 0);
    if (data[0] % 2 == 0) {
        serve(&line, &broker, connack, sizeof connack);
        serve(&line, &broker, suback, sizeof suback);
        must(line.is_up, "a broker that accepts is not accepted");
    }
    serve(&line, &broker, data + 1, size - 1);
    free(transmit);
    free(receive);
    return 0;
}
