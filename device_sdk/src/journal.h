/* SPDX-License-Identifier: Apache-2.0
 *
 * What outlives a reset (protocol/SPEC.md, section 10): the number of the boot, an update that is finished and not yet
 * acknowledged, and a key that took the place of the identity's. The client knows this struct alone: a port that names
 * no journal links nothing of journal.c.
 */
#ifndef FEDMOTE_JOURNAL_H
#define FEDMOTE_JOURNAL_H

#include "fedmote/fedmote.h"

struct fedmote_client;

/* Where the journal stands; in the client. */
struct fedmote_log {
    uint8_t phase;   /* of keeping an update: 0 rests, FEDMOTE_LOG_BEGIN begins */
    uint8_t region;  /* the one that is written */
    bool is_erased;  /* the other one, in this boot */
    uint32_t tail;   /* where its next record goes */
    uint32_t update; /* where the record of an update is, or is being written; 0: there is none */
};

#define FEDMOTE_LOG_BEGIN 1U

struct fedmote_journal {
    /* Finds the newest region, and counts this boot: line.boot and line.is_boot_counted. A key that was kept becomes
     * identity.key. */
    void (*open)(struct fedmote_client *client);
    /* Whether an update that answers the plan is there: it is offered then, as it was before the reset. */
    bool (*find)(struct fedmote_client *client);
    /* Keeps the update of the round, one flash operation at a time. False: there is nothing to do. */
    bool (*work)(struct fedmote_client *client);
    /* The update need not be kept any longer. */
    void (*drop)(struct fedmote_client *client);
    /* Keeps a key of 32 bytes in RAM, which becomes identity.key. False: it is not kept, and the old one stays. */
    bool (*keep_key)(struct fedmote_client *client, const uint8_t *secret);
};

#endif
