/* SPDX-License-Identifier: Apache-2.0
 *
 * Both ends of a transfer (protocol/SPEC.md, section 4). The receiver asks for a window of chunks and keeps a mask of
 * those still missing; the sender keeps only what was asked for and not yet answered.
 */
#ifndef FEDMOTE_TRANSFER_H
#define FEDMOTE_TRANSFER_H

#include "wire.h"

/* Largest chunk of this device, in and out. */
#define FEDMOTE_CHUNK_MAX                                                                                              \
    ((FEDMOTE_BODY_MAX - FEDMOTE_LIMIT_CHUNK_OVERHEAD - FEDMOTE_LIMIT_SEAL) / FEDMOTE_LIMIT_CHUNK_ALIGN *              \
     FEDMOTE_LIMIT_CHUNK_ALIGN)

struct fedmote_receiver {
    uint32_t handle, size;
    uint32_t window;   /* its chunks, at most FEDMOTE_LIMIT_WINDOW */
    uint32_t offset;   /* of the window */
    uint32_t missing;  /* bit i: the chunk at offset + i * FEDMOTE_CHUNK_MAX; 0 when all of the window has come */
    uint32_t asked_at; /* when to ask (again) */
};

/* Begins with the first window of so many chunks, to be asked for at once. */
void fedmote_receiver_begin(struct fedmote_receiver *receiver, uint32_t handle, uint32_t size, uint32_t window,
                            uint32_t now);
/* Writes the fields of the next get. */
void fedmote_receiver_ask(struct fedmote_receiver *receiver, struct fedmote_message *get, uint32_t now);
/* Takes a data message. Returns its bit if the chunk was still missing and has the right length, -1 where it is to be
 * ignored. */
int32_t fedmote_receiver_accept(const struct fedmote_receiver *receiver, const struct fedmote_message *data);
/* The chunk of `bit` is safe. */
void fedmote_receiver_done(struct fedmote_receiver *receiver, int32_t bit, uint32_t now);
/* Moves to the next window where all of this one has come and it is not the last one. */
void fedmote_receiver_go_on(struct fedmote_receiver *receiver, uint32_t now);

struct fedmote_offer {
    bool is_open;
    uint32_t handle, size, crc;
    uint32_t offset, chunk, pending; /* of the last get; bit i: the chunk at offset + i * chunk is still to be sent */
    uint32_t announce_at;            /* when report or samples is repeated */
};

/* Opens an offer; its handle is the checksum. */
void fedmote_offer_open(struct fedmote_offer *offer, uint32_t size, uint32_t crc, uint32_t now);
/* Takes a get for it. FEDMOTE_ERR_BODY_TOO_LARGE where its chunks exceed what this device can send. */
FEDMOTE_MUST_CHECK int32_t fedmote_offer_ask(struct fedmote_offer *offer, const struct fedmote_message *get);
/* Takes the next chunk to be sent off the mask; false where there is none. */
bool fedmote_offer_next(struct fedmote_offer *offer, uint32_t *offset, uint32_t *size);

#endif
