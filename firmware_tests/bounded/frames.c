/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame decoder (src/serial.c) against all streams of bytes up to a length, over an alphabet, and against every
 * small damage of good frames; in one piece and byte by byte. What it finds, and what it counts as dropped, is what a
 * decoder finds that was written after SPEC.md, section 2, and sees the whole stream at once. Nothing is read or
 * written outside the buffers: they are heap blocks of exactly their sizes, and this runs under AddressSanitizer and
 * UBSan.
 *
 * For `all`, the checksum is replaced by a constant: no alphabet of a few letters contains a CRC-32.
 *
 *     all LENGTH LETTER...   all streams of LENGTH letters (hexadecimal)
 *     damage                 frames with a body of no byte or one of {0, 1, FF}, alone and before another frame: each
 *                            byte replaced by each other value, left out, doubled, and each pair of neighbours
 * exchanged
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc32.h"
#include "link.h"

enum { CAPACITY = 12, STREAM = 64, FRAMES = 16, CONSTANT = 0x01010101, HEADER = 6, CRC = 4 };

static bool is_crc_constant;

static void fail(const char *what, const uint8_t *stream, uint32_t size) {
    fprintf(stderr, "%s:", what);
    for (uint32_t i = 0; i < size; i++) {
        fprintf(stderr, " %02X", stream[i]);
    }
    fprintf(stderr, "\n");
    abort();
}

/* Bit by bit, as ISO-HDLC defines it. Stands for src/crc32.c, which is not linked. */
uint32_t fedmote_crc32(uint32_t crc, const uint8_t *bytes, uint32_t size) {
    if (is_crc_constant) {
        return CONSTANT;
    }
    crc = ~crc;
    for (uint32_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (uint32_t bit = 0; bit < 8; bit++) {
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320U : crc >> 1;
        }
    }
    return ~crc;
}

/* ---- what is to be found ------------------------------------------------------------------------------------------
 */

struct found {
    uint8_t raw[FRAMES][STREAM]; /* channel, kind, body */
    uint32_t size[FRAMES];
    uint32_t count, dropped;
    int32_t error;       /* of the last frame that was dropped */
    bool is_any_brimful; /* a frame fills the buffer to its last byte: longer than any of ours, and nobody's promise */
};

static void keep(struct found *found, const uint8_t *raw, const uint8_t *body, uint32_t size) {
    uint8_t *to = found->raw[found->count];
    memcpy(to, raw, 2);
    if (size > 0) {
        memcpy(to + 2, body, size);
    }
    found->size[found->count++] = size + 2;
}

/* Decodes COBS into out[STREAM]; returns the length, or -1. */
static int32_t uncobs(const uint8_t *bytes, uint32_t size, uint8_t *out) {
    uint32_t length = 0;
    for (uint32_t at = 0; at < size;) {
        uint32_t code = bytes[at];
        if (at + code > size) {
            return -1;
        }
        memcpy(out + length, bytes + at + 1, code - 1);
        length += code - 1;
        at += code;
        if (code < 255 && at < size) {
            out[length++] = 0;
        }
    }
    return (int32_t)length;
}

static uint32_t load(const uint8_t *bytes, uint32_t count) {
    uint32_t value = 0;
    for (uint32_t i = 0; i < count; i++) {
        value |= (uint32_t)bytes[i] << 8 * i;
    }
    return value;
}

static void judge(struct found *found, const uint8_t *bytes, uint32_t size) {
    uint8_t raw[STREAM];
    int32_t length = uncobs(bytes, size, raw);
    int32_t status = FEDMOTE_OK;
    found->is_any_brimful = found->is_any_brimful || length == CAPACITY;
    if (length < 0) {
        status = FEDMOTE_ERR_FRAME_COBS;
    } else if (length > CAPACITY || length < HEADER + CRC || load(raw + 4, 2) != (uint32_t)length - HEADER - CRC) {
        status = FEDMOTE_ERR_FRAME_LENGTH;
    } else if (fedmote_crc32(0, raw, (uint32_t)length - CRC) != load(raw + length - CRC, CRC)) {
        status = FEDMOTE_ERR_FRAME_CRC;
    } else if (raw[0] > 1) {
        status = FEDMOTE_ERR_FRAME_CHANNEL;
    }
    if (status == FEDMOTE_OK) {
        keep(found, raw, raw + HEADER, (uint32_t)length - HEADER - CRC);
    } else {
        found->dropped++;
        found->error = status;
    }
}

static void find_by_specification(struct found *found, const uint8_t *stream, uint32_t size) {
    uint32_t begin = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (stream[i] != 0) {
            continue;
        }
        if (i > begin) {
            judge(found, stream + begin, i - begin);
        }
        begin = i + 1;
    }
}

/* ---- what is found ------------------------------------------------------------------------------------------------
 */

struct wire {
    const uint8_t *bytes;
    uint32_t left, piece;
};

static int32_t wire_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct wire *wire = context;
    uint32_t count = capacity < wire->piece ? capacity : wire->piece;
    count = count < wire->left ? count : wire->left;
    memcpy(bytes, wire->bytes, count);
    wire->bytes += count;
    wire->left -= count;
    return (int32_t)count;
}

static int32_t wire_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    (void)bytes;
    return (int32_t)size;
}

static void find_by_device(struct found *found, const uint8_t *stream, uint32_t size, uint32_t piece) {
    static uint8_t *receive;
    static uint8_t *transmit;
    if (receive == NULL) {
        receive = malloc(CAPACITY);
        transmit = malloc(CAPACITY);
    }
    struct wire wire = {stream, size, piece};
    struct fedmote_port port = {.context = &wire, .stream_read = wire_read, .stream_write = wire_write};
    struct fedmote_line line = {.port = &port, .receive = receive, .transmit = transmit, .capacity = CAPACITY};
    fedmote_serial_link.open(&line);
    struct fedmote_frame frame;
    bool is_more = true;
    while (is_more) {
        is_more = wire.left > 0;
        int32_t status = fedmote_serial_link.poll(&line, 0, &frame);
        if (status == FEDMOTE_LINK_FRAME) {
            if (frame.body < receive || frame.body + frame.size > receive + CAPACITY || found->count == FRAMES) {
                fail("a frame outside its buffer", stream, size);
            }
            const uint8_t raw[2] = {frame.channel, frame.kind};
            keep(found, raw, frame.body, frame.size);
            is_more = true;
        } else if (status != FEDMOTE_OK) {
            fail("a status that poll does not have", stream, size);
        }
    }
    found->dropped = line.frame_errors;
    found->error = line.frame_errors > 0 ? line.error : FEDMOTE_OK;
}

/* Returns the number of frames in the stream. */
static uint32_t compare(const uint8_t *stream, uint32_t size) {
    struct found right = {0};
    find_by_specification(&right, stream, size);
    if (right.is_any_brimful) {
        return 0;
    }
    const uint32_t pieces[] = {1, STREAM};
    for (uint32_t i = 0; i < 2; i++) {
        struct found found = {0};
        find_by_device(&found, stream, size, pieces[i]);
        if (found.count != right.count || found.dropped != right.dropped || found.error != right.error) {
            fail("another number of frames or drops", stream, size);
        }
        for (uint32_t k = 0; k < right.count; k++) {
            if (found.size[k] != right.size[k] || memcmp(found.raw[k], right.raw[k], right.size[k]) != 0) {
                fail("another frame", stream, size);
            }
        }
    }
    return right.count;
}

/* ---- streams ------------------------------------------------------------------------------------------------------
 */

static unsigned long streams, frames;

static void look_at(const uint8_t *stream, uint32_t size) {
    streams++;
    frames += compare(stream, size);
}

static void run_all(uint32_t length, const uint8_t *letters, uint32_t count) {
    uint8_t stream[STREAM];
    uint32_t digit[STREAM] = {0};
    memset(stream, letters[0], sizeof stream);
    for (;;) {
        look_at(stream, length);
        uint32_t at = 0;
        while (at < length && ++digit[at] == count) {
            digit[at] = 0;
            stream[at] = letters[0];
            at++;
        }
        if (at == length) {
            return;
        }
        stream[at] = letters[digit[at]];
    }
}

/* A frame as a sender makes it, short enough for one group of COBS at a time; returns its size. */
static uint32_t make_frame(uint8_t *out, uint8_t channel, const uint8_t *body, uint32_t size) {
    uint8_t raw[STREAM] = {channel, 4, 0xFF, 0, (uint8_t)size, 0};
    if (size > 0) {
        memcpy(raw + HEADER, body, size);
    }
    uint32_t crc = fedmote_crc32(0, raw, HEADER + size);
    for (uint32_t i = 0; i < CRC; i++) {
        raw[HEADER + size + i] = (uint8_t)(crc >> 8 * i);
    }
    uint32_t code_at = 0;
    uint32_t length = 1;
    for (uint32_t i = 0; i < HEADER + size + CRC; i++) {
        if (raw[i] != 0) {
            out[length++] = raw[i];
        } else {
            out[code_at] = (uint8_t)(length - code_at);
            code_at = length++;
        }
    }
    out[code_at] = (uint8_t)(length - code_at);
    out[length++] = 0;
    return length;
}

static void damage(const uint8_t *stream, uint32_t size) {
    uint8_t changed[STREAM];
    look_at(stream, size);
    for (uint32_t at = 0; at < size; at++) {
        memcpy(changed, stream, size);
        for (uint32_t value = 0; value < 256; value++) {
            changed[at] = (uint8_t)value;
            look_at(changed, size);
        }
        memmove(changed + at, stream + at + 1, size - at - 1); /* left out */
        look_at(changed, size - 1);
        memcpy(changed, stream, at + 1);
        memcpy(changed + at + 1, stream + at, size - at); /* doubled */
        look_at(changed, size + 1);
        memcpy(changed, stream, size);
        if (at + 1 < size) {
            changed[at] = stream[at + 1];
            changed[at + 1] = stream[at];
            look_at(changed, size);
        }
    }
}

static void run_damage(void) {
    static const uint8_t letters[] = {0x00, 0x01, 0xFF};
    for (uint32_t size = 0; size <= 1; size++) { /* 12 bytes of buffer: bodies of one byte, and two frames in turn */
        for (uint32_t one = 0; one < 3; one++) {
            for (uint8_t channel = 0; channel < 3; channel++) {
                uint8_t stream[STREAM];
                uint32_t first = make_frame(stream, channel, letters + one, size);
                uint32_t second = make_frame(stream + first, 1, letters + 1, 1);
                damage(stream, first);
                damage(stream, first + second);
            }
        }
    }
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "all") == 0) {
        uint8_t letters[STREAM];
        for (int i = 3; i < argc; i++) {
            letters[i - 3] = (uint8_t)strtoul(argv[i], NULL, 16);
        }
        is_crc_constant = true;
        run_all((uint32_t)strtoul(argv[2], NULL, 10), letters, (uint32_t)argc - 3);
    } else if (argc == 2 && strcmp(argv[1], "damage") == 0) {
        run_damage();
    } else {
        fprintf(stderr, "usage: all LENGTH LETTER... | damage\n");
        return 2;
    }
    printf("%lu streams, %lu frames\n", streams, frames);
    return 0;
}
