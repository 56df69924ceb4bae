/* SPDX-License-Identifier: Apache-2.0
 *
 * The stream is cut at each 0x00. Bytes are decoded as they come; what does not decode is counted and dropped, and the
 * hunt goes on at the next delimiter, so noise costs at most the frames that it touches. Each frame is sent with a
 * delimiter in front as well as behind: noise before it is then a frame of its own.
 */
#include "serial.h"

#include <string.h>

#include "crc32.h"
#include "link.h"
#include "little_endian.h"

enum { GROUP = 254, HEADER = FEDMOTE_LIMIT_FRAME_HEADER, CRC = FEDMOTE_LIMIT_FRAME_CRC, RETRY_MS = 500 };

static void store16(uint8_t *bytes, uint32_t value) {
    bytes[0] = (uint8_t)value;
    bytes[1] = (uint8_t)(value >> 8);
}

/* ---- receiving ----------------------------------------------------------------------------------------------------
 */

static void begin_frame(struct fedmote_serial *serial) {
    serial->decoded = 0;
    serial->group = 0;
    serial->is_zero_owed = false;
    serial->is_skipping = false;
    serial->is_empty = true;
}

static void put(struct fedmote_line *line, uint8_t byte) {
    struct fedmote_serial *serial = &line->as.serial;
    if (serial->decoded == line->capacity) {
        serial->is_skipping = true;
    } else {
        line->receive[serial->decoded++] = byte;
    }
}

/* One byte that is no delimiter. */
static void decode_byte(struct fedmote_line *line, uint8_t byte) {
    struct fedmote_serial *serial = &line->as.serial;
    serial->is_empty = false;
    if (serial->group > 0) {
        serial->group--;
        put(line, byte);
        return;
    }
    if (serial->is_zero_owed) {
        put(line, 0);
    }
    serial->group = (uint8_t)(byte - 1);
    serial->is_zero_owed = byte != GROUP + 1;
}

/* Checks a complete frame in the order of SPEC.md. */
static int32_t check_frame(struct fedmote_line *line, struct fedmote_frame *frame) {
    const struct fedmote_serial *serial = &line->as.serial;
    const uint8_t *raw = line->receive;
    if (serial->group > 0) {
        return FEDMOTE_ERR_FRAME_COBS;
    }
    if (serial->is_skipping || serial->decoded < HEADER + CRC ||
        fedmote_load_u16(raw + 4) != serial->decoded - HEADER - CRC) {
        return FEDMOTE_ERR_FRAME_LENGTH;
    }
    if (fedmote_crc32(0, raw, serial->decoded - CRC) != fedmote_load_u32(raw + serial->decoded - CRC)) {
        return FEDMOTE_ERR_FRAME_CRC;
    }
    if (raw[0] > FEDMOTE_CHANNEL_CELL) {
        return FEDMOTE_ERR_FRAME_CHANNEL;
    }
    frame->channel = raw[0];
    frame->kind = raw[1];
    frame->body = raw + HEADER;
    frame->size = serial->decoded - HEADER - CRC;
    return FEDMOTE_LINK_FRAME;
}

/* Decodes what was read, up to the end of one good frame. */
static int32_t decode(struct fedmote_line *line, struct fedmote_frame *frame) {
    struct fedmote_serial *serial = &line->as.serial;
    while (serial->next < serial->end) {
        uint8_t byte = line->receive[serial->next++];
        if (byte != 0) {
            decode_byte(line, byte);
            continue;
        }
        if (serial->is_empty) {
            continue;
        }
        int32_t status = check_frame(line, frame);
        if (status == FEDMOTE_LINK_FRAME) {
            line->frames_received++;
            serial->has_frame = true;
            return status;
        }
        fedmote_line_drop(line, status);
        begin_frame(serial);
    }
    return FEDMOTE_OK;
}

/* Makes room behind what is decoded and reads into it. */
static int32_t fill(struct fedmote_line *line) {
    struct fedmote_serial *serial = &line->as.serial;
    if (serial->is_skipping) {
        serial->decoded = 0; /* the check at the delimiter refuses it by `is_skipping`, whatever the bytes are */
    }
    if (serial->next > serial->decoded) {
        memmove(line->receive + serial->decoded, line->receive + serial->next, serial->end - serial->next);
        serial->end -= serial->next - serial->decoded;
        serial->next = serial->decoded;
    }
    if (serial->end == line->capacity) { /* all of it is decoded and no delimiter came: longer than any frame of ours */
        serial->is_skipping = true;
        serial->decoded = serial->next = serial->end = 0;
    }
    int32_t moved = fedmote_line_read(line, line->receive + serial->end, line->capacity - serial->end);
    if (moved > 0) {
        serial->end += (uint32_t)moved;
    }
    return moved;
}

static int32_t serial_poll(struct fedmote_line *line, uint32_t now, struct fedmote_frame *frame) {
    struct fedmote_serial *serial = &line->as.serial;
    (void)now; /* a serial line has no timers */
    line->has_moved = false;
    if (serial->has_frame) {
        serial->has_frame = false;
        begin_frame(serial);
    }
    int32_t status = decode(line, frame); /* bytes left over from the last read first */
    if (status == FEDMOTE_LINK_FRAME) {
        line->has_moved = true;
        return status;
    }
    int32_t moved = fill(line);
    if (moved < 0 || fedmote_line_flush(line) < 0) {
        fedmote_line_lose(line, FEDMOTE_ERR_LINK);
        begin_frame(serial);
        serial->next = serial->end = 0;
        return FEDMOTE_OK;
    }
    line->is_up = true;
    return decode(line, frame);
}

/* ---- sending ------------------------------------------------------------------------------------------------------
 */

/* COBS forward in place: reads [from, from + size), writes from 1 on behind a delimiter, returns the end. Never
 * overtakes itself: the output is ahead of the input by at most 2 + size / 254 bytes (see FEDMOTE_BODY_OFFSET). */
static uint32_t encode(uint8_t *buffer, uint32_t from, uint32_t size) {
    uint32_t code_at = 1;
    uint32_t to = 2;
    buffer[0] = 0;
    for (uint32_t i = 0; i < size; i++) {
        uint8_t byte = buffer[from + i];
        if (byte != 0) {
            buffer[to++] = byte;
        }
        bool is_full = to - code_at == GROUP + 1;
        if (byte == 0 || (is_full && i + 1 < size)) {
            buffer[code_at] = (uint8_t)(to - code_at);
            code_at = to++;
        }
    }
    buffer[code_at] = (uint8_t)(to - code_at);
    buffer[to++] = 0;
    return to;
}

static void serial_send(struct fedmote_line *line, uint8_t channel, uint8_t kind, uint32_t size) {
    const uint32_t begin = FEDMOTE_BODY_OFFSET - HEADER;
    uint8_t *raw = line->transmit + begin;
    raw[0] = channel;
    raw[1] = kind;
    store16(raw + 2, line->as.serial.sequence_out++);
    store16(raw + 4, size);
    uint32_t crc = fedmote_crc32(0, raw, HEADER + size);
    store16(raw + HEADER + size, crc & 0xFFFF);
    store16(raw + HEADER + size + 2, crc >> 16);
    line->tx_begin = 0;
    line->tx_end = encode(line->transmit, begin, HEADER + size + CRC);
    line->frames_sent++;
}

static void serial_open(struct fedmote_line *line) {
    memset(&line->as.serial, 0, sizeof line->as.serial);
    begin_frame(&line->as.serial);
}

static uint32_t serial_wake_ms(const struct fedmote_line *line, uint32_t now) {
    (void)now;
    return line->is_up ? UINT32_MAX : RETRY_MS; /* a peer that waits for our hello sends nothing that could wake us */
}

const struct fedmote_link fedmote_serial_link = {serial_open, serial_poll, serial_send, serial_wake_ms};
