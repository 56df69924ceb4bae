/* SPDX-License-Identifier: Apache-2.0
 *
 * Fetching a package from where an earlier fetch of it ended, in this boot or one before. The client knows this struct
 * alone: a port that names no resuming links nothing of resume.c.
 */
#ifndef FEDMOTE_RESUME_H
#define FEDMOTE_RESUME_H

#include "fedmote/fedmote.h"

struct fedmote_client;

struct fedmote_resuming {
    /* Goes on with the plan's package where its slot ends. False: nothing of it is there, or its difference is less. */
    bool (*begin)(struct fedmote_client *client);
    /* Writes what of a chunk is not there yet. Where something else is, the whole package is fetched anew. Error:
     * FEDMOTE_ERR_SLOT_IO. */
    int32_t (*keep)(struct fedmote_client *client, uint32_t offset, const uint8_t *bytes, uint32_t size);
};

#endif
