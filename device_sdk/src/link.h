/* SPDX-License-Identifier: Apache-2.0
 *
 * What is common to all links: the line (buffers, counters, state of the stream) and the table of functions that makes
 * a link out of it. Nothing here blocks; whatever could not be written stays in the transmit buffer and goes on later.
 */
#ifndef FEDMOTE_LINK_H
#define FEDMOTE_LINK_H

#include "mqtt.h"
#include "serial.h"

/* A body is composed at this offset of the transmit buffer. In front of it there is room for an MQTT header with the
 * longest topic (99 bytes), or for the serial header and the head start that in-place COBS needs: 1 byte
 * per 254, so 106 bytes are enough for BODY_MAX up to 24000. The least holds the longest hello, 172 bytes, sealed. */
#define FEDMOTE_BODY_OFFSET 112
typedef char fedmote_body_max_is_between_200_and_24000[FEDMOTE_BODY_MAX >= 200 && FEDMOTE_BODY_MAX <= 24000 ? 1 : -1];

/* A message as it came; `body` is borrowed until the next poll. */
struct fedmote_frame {
    uint8_t channel;
    uint8_t kind; /* 0: a topic whose last level names no kind */
    const uint8_t *body;
    uint32_t size;
};

struct fedmote_line {
    const struct fedmote_port *port;
    const struct fedmote_identity *identity;
    uint32_t boot; /* of this boot, for hello, birth and will: the journal's counter, or else a random number */
    uint8_t *receive;
    uint8_t *transmit;
    uint32_t capacity;         /* of each buffer */
    uint32_t tx_begin, tx_end; /* what of the transmit buffer is still to be written; equal: the buffer is free */
    bool is_boot_counted;      /* `boot` is higher than at every boot before, and durably so */
    bool is_up;                /* messages can be sent */
    bool has_moved;            /* bytes were read or written in the last poll */
    uint32_t frames_received, frames_sent, frame_errors, losses;
    int32_t error; /* last reason of a dropped frame or a lost stream */
    union {
        struct fedmote_serial serial;
        struct fedmote_mqtt mqtt;
    } as;
};

#define FEDMOTE_LINK_FRAME 1 /* poll(): a frame is there */

struct fedmote_link {
    /* Starts over, with whatever state the stream is in. */
    void (*open)(struct fedmote_line *line);
    /* Moves bytes both ways and runs the timers. Returns FEDMOTE_LINK_FRAME with at most one frame, else FEDMOTE_OK;
     * faults show in line->is_up, counters and error. Reads at most one transmit and one receive buffer. */
    int32_t (*poll)(struct fedmote_line *line, uint32_t now, struct fedmote_frame *frame);
    /* Sends the body that was composed at transmit + FEDMOTE_BODY_OFFSET. Only when fedmote_line_is_free(). */
    void (*send)(struct fedmote_line *line, uint8_t channel, uint8_t kind, uint32_t size);
    /* Milliseconds until poll() has something to do by the clock; UINT32_MAX: never. */
    uint32_t (*wake_ms)(const struct fedmote_line *line, uint32_t now);
};

/* Whether a message may be composed now. */
bool fedmote_line_is_free(const struct fedmote_line *line);
/* Writes what the stream takes. Returns FEDMOTE_OK or FEDMOTE_ERR_LINK. */
int32_t fedmote_line_flush(struct fedmote_line *line);
/* Reads up to `size` bytes. Returns their number or FEDMOTE_ERR_LINK. */
int32_t fedmote_line_read(struct fedmote_line *line, uint8_t *bytes, uint32_t size);
/* Counts a dropped frame. */
void fedmote_line_drop(struct fedmote_line *line, int32_t status);
/* The stream is gone: forgets what was to be written. */
void fedmote_line_lose(struct fedmote_line *line, int32_t status);

/* Milliseconds from `now` to `at`, 0 where it has passed. Right for distances below 2^31 ms; all timers here are
 * shorter. */
uint32_t fedmote_until(uint32_t at, uint32_t now);
/* Full jitter: uniform in [1, limit_ms]. */
uint32_t fedmote_jitter(const struct fedmote_port *port, uint32_t limit_ms);

#endif
