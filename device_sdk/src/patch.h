/* SPDX-License-Identifier: Apache-2.0
 *
 * Fetching a package as a difference from the installed one. The client knows this struct alone: a port that names no
 * patching links nothing of patch.c and difference.c.
 */
#ifndef FEDMOTE_PATCH_H
#define FEDMOTE_PATCH_H

#include "fedmote/fedmote.h"

struct fedmote_client;

struct fedmote_patching {
    uint32_t format; /* of the differences that it applies */
    /* Begins to fetch the difference of the plan. False: none is offered, or the arena has no room for a window. */
    bool (*begin)(struct fedmote_client *client);
    /* Keeps a chunk of the window until all of it has come. */
    void (*keep)(const struct fedmote_client *client, uint32_t offset, const uint8_t *bytes, uint32_t size);
    /* Does one piece of work: a page, or a flash operation. False: chunks are awaited. */
    bool (*work)(struct fedmote_client *client);
    /* The package that was made is refused with `status`. True where the difference is to blame: the whole package is
     * fetched instead. */
    bool (*is_lost)(struct fedmote_client *client, int32_t status);
};

#endif
