/* SPDX-License-Identifier: Apache-2.0
 *
 * Embeddings that do not fit the arena, kept in the port's cache region for the time of a round. round.c knows this
 * struct alone: a port that names no cache links nothing of cache.c.
 */
#ifndef FEDMOTE_CACHE_H
#define FEDMOTE_CACHE_H

#include "fedmote/fedmote.h"

struct fedmote_round;

struct fedmote_cache {
    /* Between two samples of the encoding: keeps the embedding that lies in the encoder's memory, if it is the next one
     * to keep. Returns true after a flash operation: at most one per call, so call again in the next step. */
    bool (*keep)(struct fedmote_round *round);
    /* The embedding of a sample with layout.cached <= sample < round->kept, in place. */
    const int8_t *(*find)(const struct fedmote_round *round, uint32_t sample);
};

#endif
