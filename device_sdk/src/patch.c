/* SPDX-License-Identifier: Apache-2.0
 *
 * The arena rests while a package is fetched: behind the link buffers lie the decoder and one window of chunks, as many
 * as there is room for, up to FEDMOTE_LIMIT_WINDOW. Chunks come in any order; when a window is complete it is worked
 * off from its first byte to its last, and the next one is asked for.
 */
#include "patch.h"

#include <string.h>

#include "arena.h"
#include "client.h"
#include "difference.h"

enum { STATE_ALIGN = 16 };

typedef char fedmote_a_chunk_holds_the_first_bytes[FEDMOTE_CHUNK_MAX >= FEDMOTE_DIFFERENCE_FIRST ? 1 : -1];

struct patch {
    struct fedmote_difference difference;
    bool is_erased;    /* the other slot: not before the header was found to be right */
    bool is_page_full; /* and to be written */
};

static struct patch *patch_of(const struct fedmote_client *client) {
    return (struct patch *)(void *)(client->arena + fedmote_link_bytes());
}

static uint32_t window_at(void) {
    return fedmote_link_bytes() + (uint32_t)(sizeof(struct patch) + STATE_ALIGN - 1) / STATE_ALIGN * STATE_ALIGN;
}

static bool begin(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    const uint8_t *base = fedmote_store_package(&client->store);
    uint32_t chunks = client->arena_bytes > window_at() ? (client->arena_bytes - window_at()) / FEDMOTE_CHUNK_MAX : 0;
    chunks = chunks < FEDMOTE_LIMIT_WINDOW ? chunks : FEDMOTE_LIMIT_WINDOW;
    if (!base || plan->difference_size == 0 || chunks == 0) {
        return false;
    }
    struct patch *patch = patch_of(client);
    patch->is_erased = patch->is_page_full = false;
    fedmote_difference_begin(&patch->difference, base, plan->model_hash, plan->model_size, plan->difference_size);
    fedmote_receiver_begin(&client->receiver, plan->difference_handle, plan->difference_size, chunks, client->now);
    client->fetch = FEDMOTE_FETCH_DIFFERENCE;
    return true;
}

static void keep(const struct fedmote_client *client, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    memcpy(client->arena + window_at() + (offset - client->receiver.offset), bytes, size);
}

/* Says so to the coordinator, which can do without an answer, and fetches the whole package. */
static void lose(struct fedmote_client *client, int32_t status) {
    client->refusal = status;
    client->refusal_channel = FEDMOTE_CHANNEL_COORDINATOR;
    client->is_refusal_of_round = false;
    client->has_refusal_handle = true;
    client->refusal_handle = client->round.plan.difference_handle;
    fedmote_client_note(client, FEDMOTE_EVENT_DIFFERENCE_LOST, status);
    client->fetch = FEDMOTE_FETCH_ERASE;
}

/* Other bytes than the wanted ones were made: the base has changed in its slot, or the difference was a wrong one. */
static bool is_lost(struct fedmote_client *client, int32_t status) {
    if (status > FEDMOTE_ERR_PACKAGE_MAGIC || status < FEDMOTE_ERR_PACKAGE_HASH) {
        return false;
    }
    lose(client, status);
    return true;
}

/* One flash operation. */
static void write_page(struct fedmote_client *client, struct patch *patch) {
    const struct fedmote_difference *difference = &patch->difference;
    int32_t status;
    if (patch->is_erased) {
        const uint32_t offset = difference->made - difference->filled;
        status = fedmote_store_write(&client->store, offset, difference->page, difference->filled);
        patch->is_page_full = false;
    } else {
        status = fedmote_store_begin(&client->store, difference->target_size);
        patch->is_erased = true;
    }
    if (status != FEDMOTE_OK) {
        fedmote_client_fail(client, status, "difference", true);
    }
}

/* Works on the window that has come. */
static void decode(struct fedmote_client *client, struct patch *patch) {
    struct fedmote_receiver *receiver = &client->receiver;
    struct fedmote_difference *difference = &patch->difference;
    const uint32_t window = receiver->window * FEDMOTE_CHUNK_MAX;
    const uint32_t left = receiver->size - receiver->offset;
    uint32_t at = difference->taken - receiver->offset;
    const int32_t status =
        fedmote_difference_decode(difference, client->arena + window_at(), left < window ? left : window, &at);
    if (status < 0) {
        lose(client, status);
    } else if (status == FEDMOTE_BUSY) {
        patch->is_page_full = true;
    } else if (difference->taken == receiver->size) {
        fedmote_client_install(client);
    } else {
        fedmote_receiver_go_on(receiver, client->now);
    }
}

static bool work(struct fedmote_client *client) {
    struct patch *patch = patch_of(client);
    if (patch->is_page_full) {
        write_page(client, patch);
        return true;
    }
    if (client->receiver.missing != 0) {
        return false;
    }
    decode(client, patch);
    return true;
}

const struct fedmote_patching fedmote_difference_patching = {
    .format = FEDMOTE_DIFFERENCE_FORMAT, .begin = begin, .keep = keep, .work = work, .is_lost = is_lost};
