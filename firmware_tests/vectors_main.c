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

static uint32_t unhex(const char *text, uint8_t *out) {
    uint32_t size = 0;
    unsigned value = 0;
    while (sscanf(text + 2 * size, "%2x", &value) == 1) {
        out[size++] = (uint8_t)value;
    }
    return size;
}

static void print_hex(const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        printf("%02x", bytes[i]);
    }
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

/* A broker's answers to CONNECT and SUBSCRIBE now and then, so that the noise also meets an open session. */
static void season(uint8_t *bytes, uint32_t size, uint32_t at) {
    static const uint8_t answers[] = {0x20, 2,   0,    0,   0x90, 4,   0,   1,   1,   1,   0x32,
                                      0x17, 0,   0x11, 'f', 'e',  'd', 'm', 'o', 't', 'e', '/',
                                      '1',  '/', 's',  '/', 'd',  '/', 'd', 'n', '/', 'x'};
    if (size - at >= sizeof answers) {
        memcpy(bytes + at, answers, sizeof answers);
    }
}

static void run_noise(bool is_mqtt, uint32_t seed, uint32_t size) {
    uint8_t *bytes = malloc(size);
    struct stream stream = {.bytes = bytes, .size = size, .piece = 100, .seed = seed};
    for (uint32_t i = 0; i < size; i++) {
        uint32_t draw = stream_random(&stream);
        bytes[i] =
            (uint8_t)(draw >> 3 & 3 ? draw >> 12 : draw >> 12 & 3); /* many small bytes: delimiters and lengths */
    }
    for (uint32_t at = 0; is_mqtt && at < size; at += 50 + stream_random(&stream) % 400) {
        season(bytes, size, at);
    }
    struct fedmote_port port = {.context = &stream,
                                .now_ms = stream_now,
                                .random = stream_random,
                                .stream_read = stream_read,
                                .stream_write = stream_write};
    struct fedmote_identity identity = {
        .id = "d", .site = "s", .link = is_mqtt ? &fedmote_mqtt_link : &fedmote_serial_link};
    struct fedmote_line line;
    open_line(&line, &port, &identity);
    uint32_t frames = 0;
    while (stream.at < stream.size) {
        struct fedmote_frame frame;
        struct fedmote_message message;
        /* Small pieces and a clock that jumps: the stale bytes thrown away before CONNECT are few. */
        stream.piece = 1 + stream_random(&stream) % 40;
        stream.now += line.as.mqtt.state == FEDMOTE_MQTT_WAIT && is_mqtt ? 60000 : 1;
        if (is_mqtt && line.as.mqtt.state == FEDMOTE_MQTT_WAIT) {
            stream.piece = stream_random(&stream) % 2; /* sometimes nothing is stale, and CONNECT goes out */
        }
        if (identity.link->poll(&line, stream.now, &frame) == FEDMOTE_LINK_FRAME) {
            frames++;
            (void)!fedmote_decode(&message, frame.kind, frame.body, frame.size);
        }
    }
    printf("frames=%" PRIu32 " errors=%" PRIu32 " losses=%" PRIu32 "\n", frames, line.frame_errors, line.losses);
    close_line(&line);
    free(bytes);
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
