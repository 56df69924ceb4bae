/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs the SDK's decoders over bytes from standard input, for test_vectors.py and test_noise.py. Modes:
 *
 *   messages       lines `kind hex`: prints `status` or `0 key=number|key=hex ... | re-encoded hex`
 *   frames         lines `hex`: each through a fresh serial link, in pieces of 1, 7 and all bytes; prints
 *                  `0 channel kind sequence hex` or the status of the last drop
 *   noise serial|mqtt SEED BYTES    pseudo-random bytes into a link's parser; prints the counters at the end
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hex.h"
#include "link.h"
#include "wire.h"

enum { LINE = 200000, CAPACITY = (FEDMOTE_BODY_MAX + 128 + 15) / 16 * 16 };

struct stream {
    const uint8_t *bytes;
    uint32_t size, at, piece;
    uint32_t now, seed;
};

static uint32_t stream_now(void *context) { return ((struct stream *)context)->now; }

static uint32_t stream_random(void *context) {
    struct stream *stream = context;
    stream->seed = stream->seed * 1664525U + 1013904223U;
    return stream->seed >> 8;
}

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct stream *stream = context;
    uint32_t size = stream->size - stream->at;
    size = size < capacity ? size : capacity;
    size = size < stream->piece ? size : stream->piece;
    memcpy(bytes, stream->bytes + stream->at, size);
    stream->at += size;
    return (int32_t)size;
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    (void)bytes;
    return (int32_t)size;
}

static void run_message(const char *line) {
    int skip = 0;
    unsigned kind = 0;
    (void)sscanf(line, "%u %n", &kind, &skip);
    static uint8_t hex[LINE];
    uint32_t size = unhex(line + skip, hex);
    uint8_t *body = malloc(size + 1); /* exactly as large as the body: the sanitizer sees each byte too many */
    uint8_t *exact = body + 1;
    memcpy(exact, hex, size);
    struct fedmote_message message;
    int32_t status = fedmote_decode(&message, (uint8_t)kind, exact, size);
    printf("%" PRId32, status);
    for (uint32_t key = 0; status == FEDMOTE_OK && key < FEDMOTE_FIELDS_END; key++) {
        if (!fedmote_message_has(&message, key)) {
            continue;
        }
        printf(" %" PRIu32 "=", key);
        if (fedmote_field_rules[key].type == FEDMOTE_TYPE_UINT) {
            printf("%" PRIu32, message.number[key]);
        } else {
            print_hex(message.bytes[key], message.number[key]);
        }
    }
    if (status == FEDMOTE_OK) {
        static uint8_t again[LINE];
        int32_t encoded = fedmote_encode(&message, again, sizeof again);
        printf(" | ");
        print_hex(again, encoded > 0 ? (uint32_t)encoded : 0);
        for (uint32_t capacity = 0; capacity < (uint32_t)encoded; capacity++) { /* never a byte beyond the capacity */
            uint8_t *tight = malloc(capacity + 1);
            if (fedmote_encode(&message, tight, capacity) != FEDMOTE_ERR_BODY_TOO_LARGE) {
                printf(" overrun");
            }
            free(tight);
        }
    }
    printf("\n");
    free(body);
}

static void open_line(struct fedmote_line *line, const struct fedmote_port *port,
                      const struct fedmote_identity *identity) {
    memset(line, 0, sizeof *line);
    line->port = port;
    line->identity = identity;
    line->capacity = CAPACITY;
    line->receive = malloc(CAPACITY);
    line->transmit = malloc(CAPACITY);
    identity->link->open(line);
}

static void close_line(struct fedmote_line *line) {
    free(line->receive);
    free(line->transmit);
}

static void run_frame(const char *text) {
    static uint8_t bytes[LINE];
    struct stream stream = {.bytes = bytes, .size = unhex(text, bytes)};
    struct fedmote_port port = {.context = &stream,
                                .now_ms = stream_now,
                                .random = stream_random,
                                .stream_read = stream_read,
                                .stream_write = stream_write};
    struct fedmote_identity identity = {.id = "d", .site = "s", .link = &fedmote_serial_link};
    static const uint32_t pieces[] = {1, 7, UINT32_MAX};
    for (uint32_t i = 0; i < 3; i++) {
        struct fedmote_line line;
        struct fedmote_frame frame = {0};
        stream.at = 0;
        stream.piece = pieces[i];
        open_line(&line, &port, &identity);
        int32_t status = FEDMOTE_OK;
        while (status == FEDMOTE_OK && (stream.at < stream.size || line.has_moved)) {
            status = identity.link->poll(&line, 0, &frame);
        }
        if (status == FEDMOTE_LINK_FRAME) {
            printf("0 %u %u %u ", frame.channel, frame.kind, (unsigned)(line.receive[2] | line.receive[3] << 8));
            print_hex(frame.body, frame.size);
        } else {
            printf("%" PRId32, line.error);
        }
        printf(i == 2 ? "\n" : ";");
        close_line(&line);
    }
}

/* A stream without an end for a link under noise: what it says next depends on how far the link has come, so that most
 * of the noise meets an open session. */
struct noise {
    struct stream stream; /* first: its clock and its entropy serve both */
    struct fedmote_line *line;
    bool is_mqtt;
    uint8_t queue[700];
    uint32_t queued, total;
};

static uint32_t draw(struct noise *noise, uint32_t below) { return stream_random(&noise->stream) % below; }

static void enqueue(struct noise *noise, const void *bytes, uint32_t size) {
    memcpy(noise->queue, bytes, size);
    noise->queued = size;
}

static void enqueue_random(struct noise *noise, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) { /* many small bytes: delimiters and lengths */
        noise->queue[i] = (uint8_t)(draw(noise, 4) == 0 ? draw(noise, 4) : draw(noise, 256));
    }
    noise->queued = size;
}

/* A packet or frame that is right but for a byte or two. */
static void enqueue_almost(struct noise *noise) {
    static const uint8_t publish[] = "\x32\x1c\0\x14"
                                     "fedmote/1/s/d/dn/ack\1\2\xa3\1\1\6";
    static const uint8_t frame[] = {1, 5, 2, 1, 1, 4, 9, 161, 24, 24, 5, 178, 233, 163, 41, 0};
    enqueue(noise, noise->is_mqtt ? publish : frame,
            noise->is_mqtt ? (uint32_t)sizeof publish - 1 : (uint32_t)sizeof frame);
    for (uint32_t changes = draw(noise, 3); changes > 0; changes--) {
        noise->queue[draw(noise, noise->queued)] = (uint8_t)draw(noise, 256);
    }
}

static void enqueue_next(struct noise *noise) {
    static const uint8_t connack[] = {0x20, 2, 0, 0};
    static const uint8_t suback[] = {0x90, 4, 0, 1, 1, 1};
    uint8_t state = noise->is_mqtt ? noise->line->as.mqtt.state : (uint8_t)FEDMOTE_MQTT_UP;
    bool is_fair = draw(noise, 8) > 0;
    if (is_fair && state == FEDMOTE_MQTT_CONNECT) {
        enqueue(noise, connack, sizeof connack);
    } else if (is_fair && state == FEDMOTE_MQTT_SUBSCRIBE) {
        enqueue(noise, suback, sizeof suback);
    } else if (draw(noise, 2) == 0) {
        enqueue_almost(noise);
    } else {
        enqueue_random(noise, 1 + draw(noise, draw(noise, 4) == 0 ? 699 : 20));
    }
}

static int32_t noise_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct noise *noise = context;
    if (noise->is_mqtt && noise->line->as.mqtt.state == FEDMOTE_MQTT_WAIT && draw(noise, 4) > 0) {
        noise->queued = 0; /* mostly nothing stale is left of the last session */
        return 0;
    }
    if (noise->queued == 0) {
        enqueue_next(noise);
    }
    uint32_t size = 1 + draw(noise, noise->queued);
    size = size < capacity ? size : capacity;
    memcpy(bytes, noise->queue, size);
    memmove(noise->queue, noise->queue + size, noise->queued - size);
    noise->queued -= size;
    noise->total += size;
    return (int32_t)size;
}

static void run_noise(bool is_mqtt, uint32_t seed, uint32_t size) {
    struct fedmote_line line;
    struct noise noise = {.stream = {.seed = seed}, .line = &line, .is_mqtt = is_mqtt};
    struct fedmote_port port = {.context = &noise,
                                .now_ms = stream_now,
                                .random = stream_random,
                                .stream_read = noise_read,
                                .stream_write = stream_write};
    struct fedmote_identity identity = {
        .id = "d", .site = "s", .link = is_mqtt ? &fedmote_mqtt_link : &fedmote_serial_link};
    open_line(&line, &port, &identity);
    uint32_t frames = 0;
    while (noise.total < size) {
        struct fedmote_frame frame;
        struct fedmote_message message;
        noise.stream.now += is_mqtt && line.as.mqtt.state == FEDMOTE_MQTT_WAIT ? 60000 : 100;
        if (identity.link->poll(&line, noise.stream.now, &frame) == FEDMOTE_LINK_FRAME) {
            frames++;
            (void)!fedmote_decode(&message, frame.kind, frame.body, frame.size);
        }
    }
    printf("frames=%" PRIu32 " errors=%" PRIu32 " losses=%" PRIu32 "\n", frames, line.frame_errors, line.losses);
    close_line(&line);
}

int main(int argc, char **argv) {
    static char line[LINE];
    if (argc == 5 && strcmp(argv[1], "noise") == 0) {
        run_noise(strcmp(argv[2], "mqtt") == 0, (uint32_t)strtoul(argv[3], NULL, 10),
                  (uint32_t)strtoul(argv[4], NULL, 10));
        return 0;
    }
    if (argc != 2) {
        return 2;
    }
    while (fgets(line, sizeof line, stdin)) {
        strcmp(argv[1], "messages") == 0 ? run_message(line) : run_frame(line);
    }
    return 0;
}
