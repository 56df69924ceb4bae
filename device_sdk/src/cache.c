/* SPDX-License-Identifier: Apache-2.0
 *
 * The region holds the embeddings of the samples [layout.cached, kept) one after the other, each padded to a multiple
 * of WRITE_ALIGN. What the padding holds is whatever lies behind the features in the arena; nobody reads it.
 */
#include "cache.h"

#include <string.h>

#include "round.h"

enum { WRITE_ALIGN = 8 };

static uint32_t stride(const struct fedmote_round *round) {
    return (round->package.feature_count + WRITE_ALIGN - 1U) & ~(uint32_t)(WRITE_ALIGN - 1U);
}

/* Where in the region the embedding of a sample lies. */
static uint32_t offset_of(const struct fedmote_round *round, uint32_t sample) {
    return (sample - round->layout.cached) * stride(round);
}

static const int8_t *find(const struct fedmote_round *round, uint32_t sample) {
    const struct fedmote_port *port = round->port;
    return port->cache_base(port->context) + offset_of(round, sample);
}

/* Writes the embedding of the sample `kept` and reads it back. */
static int32_t store(const struct fedmote_round *round) {
    const struct fedmote_port *port = round->port;
    const int8_t *features = fedmote_encoder_features(&round->encoder);
    const int32_t status =
        port->cache_write(port->context, offset_of(round, round->kept), (const uint8_t *)features, stride(round));
    if (status < 0) {
        return status;
    }
    const bool is_same = memcmp(find(round, round->kept), features, round->package.feature_count) == 0;
    return is_same ? FEDMOTE_OK : FEDMOTE_ERR_SLOT_IO;
}

/* An error ends the keeping, not the round: what is not kept is encoded again. */
static bool keep(struct fedmote_round *round) {
    const struct fedmote_port *port = round->port;
    const bool is_next = round->cursor == round->kept + 1U;
    if (!is_next || round->is_cache_closed || round->plan.epochs == 0U ||
        round->kept - round->layout.cached >= port->cache_bytes / stride(round)) {
        return false;
    }
    int32_t status;
    if (round->is_cache_erased) {
        status = store(round);
        round->kept += status == FEDMOTE_OK;
    } else {
        status = port->cache_erase(port->context);
        round->is_cache_erased = true;
    }
    if (status < 0) {
        round->is_cache_closed = true;
        if (port->event) {
            port->event(port->context, FEDMOTE_EVENT_CACHE_LOST, status);
        }
    }
    return true;
}

const struct fedmote_cache fedmote_cache_region = {.keep = keep, .find = find};
