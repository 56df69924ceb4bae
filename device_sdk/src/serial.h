/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames over a serial line (protocol/SPEC.md, section 2): COBS, CRC-32, two channels.
 */
#ifndef FEDMOTE_SERIAL_H
#define FEDMOTE_SERIAL_H

#include "fedmote/fedmote.h"

/* The receiver decodes in place: what is decoded lies in [0, decoded) of the receive buffer, what is read and not yet
 * decoded in [next, end), and decoded <= next always, since COBS never grows while it is being decoded. */
struct fedmote_serial {
    uint32_t decoded, next, end;
    uint8_t group;     /* bytes of the current group that are still to come */
    bool is_zero_owed; /* the current group ends with a zero, unless the frame ends first */
    bool is_skipping;  /* the frame is too long for the buffer: hunting for the delimiter */
    bool is_empty;     /* no byte since the last delimiter */
    bool has_frame;    /* the last poll returned a frame: its bytes may now be overwritten */
    uint16_t sequence_out;
};

#endif
