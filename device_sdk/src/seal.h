/* SPDX-License-Identifier: Apache-2.0
 *
 * Sealed messages (protocol/SPEC.md, section 11): encryption, proof of origin and protection against replay, where the
 * identity has keys. Linked where a port names `fedmote_message_sealing`.
 */
#ifndef FEDMOTE_SEAL_H
#define FEDMOTE_SEAL_H

#include "link.h"

struct fedmote_client;

/* What is kept of one channel. */
struct fedmote_seal_channel {
    uint64_t taken;  /* bit i: the message `newest - i` of the epoch was taken */
    uint32_t epoch;  /* of the peer's present start; 0: not known yet */
    uint32_t newest; /* sequence of the newest message that was taken */
    uint32_t next;   /* sequence of the next message out, of this boot */
    uint8_t silence; /* messages that went out since the last one that was taken; data is not counted */
};

struct fedmote_seal {
    struct fedmote_seal_channel channels[2];
    uint32_t forged, replayed; /* messages that were refused since fedmote_init() */
};

struct fedmote_sealing {
    /* Checks the port and that this boot is counted. FEDMOTE_ERR_ARGUMENT, FEDMOTE_ERR_SLOT_IO: it was not. */
    int32_t (*begin)(struct fedmote_client *client);
    /* Seals the body of `size` bytes in the transmit buffer, in place. Returns its new size; 0: it must not be sent. */
    uint32_t (*close)(struct fedmote_client *client, uint8_t channel, uint8_t kind, uint32_t size);
    /* Opens a body in the receive buffer, in place; false, counted, where it is not to be believed. */
    bool (*open)(struct fedmote_client *client, struct fedmote_frame *frame);
};

#endif
