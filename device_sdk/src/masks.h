/* SPDX-License-Identifier: Apache-2.0
 *
 * Masked sums (protocol/SPEC.md, section 13): the update leaves in words under masks, of which the coordinator gets
 * enough to see the sum of a group and no single member's part. The client knows this struct alone: a port that names
 * no masking links nothing of masks.c, refuses plans of masked rounds, and does not start with an identity that has a
 * group.
 */
#ifndef FEDMOTE_MASKS_H
#define FEDMOTE_MASKS_H

#include "wire.h"

struct fedmote_client;

/* Bytes of an identity's group with so many neighbours, and the most neighbours. */
#define FEDMOTE_MASKING_BYTES(neighbours) (44U + 33U * (neighbours))
#define FEDMOTE_MASKING_NEIGHBOURS 8U
#define FEDMOTE_MASKING_K 10U /* where their number stands in it */

/* Where a masked round stands; in the client. All else lies in the arena, which rests by then. */
struct fedmote_masks {
    uint8_t step;      /* whose blob is made or offered, as in the report; 0: the round is not masked */
    uint8_t phase;     /* 0: there is no update to mask yet, or none any more */
    uint8_t neighbour; /* whose box or mask is next */
    uint8_t survivors; /* of the question, bit i: the neighbour i */
    bool is_asked;     /* the question came */
    uint32_t room;     /* offset in the arena */
    uint32_t begun;    /* participations since fedmote_init() */
    float clip_norm;   /* of the plan */
    float norm;        /* of the update; its square while it is summed up */
};

struct fedmote_masking {
    /* Whether port and identity have what it takes: functions, the key, and a group that is one. */
    bool (*is_ready)(const struct fedmote_client *client);
    /* Whether a new plan may be followed. FEDMOTE_ERR_MASK_GROUP: it is masked and the device in no group, or the other
     * way round, or it is for another group. */
    int32_t (*check)(struct fedmote_client *client, const struct fedmote_message *plan);
    /* The client is in another state than before: masking begins, or is over and its secrets are wiped. */
    void (*enter)(struct fedmote_client *client);
    /* Hears a message of the coordinator; true where nobody else should. */
    bool (*hear)(struct fedmote_client *client, const struct fedmote_message *message);
    /* Does one piece of work. False: the coordinator's next word is awaited. */
    bool (*work)(struct fedmote_client *client);
};

#endif
