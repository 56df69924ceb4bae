/* SPDX-License-Identifier: Apache-2.0
 *
 * What a fetch has written outlives a reset: the slot's first chunk holds hash and size of the package, and behind the
 * last unit that is written there is nothing. All windows before that one's are complete, since a window is asked for
 * when the one before it is; of this one the chunks are asked for that have an erased unit, and what they have is
 * compared instead of written. A unit that a cut has torn is found so, or by the hash at the end.
 */
#include "resume.h"

#include <string.h>

#include "client.h"
#include "little_endian.h"

enum { SIZE_AT = 8, HASH_AT = 16, HEADER_BYTES = 48, UNIT = FEDMOTE_FLASH_UNIT };

static const uint8_t *spare_slot(const struct fedmote_client *client) {
    return client->port->slot_base(client->port->context, fedmote_store_spare(&client->store));
}

static bool is_all(const uint8_t *bytes, uint8_t value, uint32_t size) {
    while (size > 0 && bytes[size - 1] == value) {
        size--;
    }
    return size == 0;
}

/* What the erased bytes of the slot read as: its end is written last. */
static uint8_t erased_byte(const struct fedmote_client *client, const uint8_t *slot) {
    return slot[fedmote_store_room(&client->store)];
}

/* Bytes up to the end of the last unit that is written. */
static uint32_t written(const struct fedmote_client *client, const uint8_t *slot, uint32_t size) {
    const uint8_t erased = erased_byte(client, slot);
    while (size > 0 && is_all(slot + size - UNIT, erased, UNIT)) {
        size -= UNIT;
    }
    return size;
}

/* Takes the chunks that have no erased unit from the mask of those missing. */
static void look(const struct fedmote_client *client, struct fedmote_receiver *receiver, const uint8_t *slot) {
    const uint8_t erased = erased_byte(client, slot);
    uint32_t whole = receiver->missing;
    uint32_t at = receiver->offset;
    for (uint32_t i = 0; i < FEDMOTE_LIMIT_WINDOW * FEDMOTE_CHUNK_MAX && at < receiver->size; i += UNIT, at += UNIT) {
        if (is_all(slot + at, erased, UNIT)) {
            whole &= ~(1U << i / FEDMOTE_CHUNK_MAX);
        }
    }
    receiver->missing &= ~whole;
}

static bool begin(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    const uint32_t window = FEDMOTE_LIMIT_WINDOW * FEDMOTE_CHUNK_MAX;
    const uint32_t room = fedmote_store_room(&client->store);
    const uint8_t *slot = spare_slot(client);
    const uint8_t erased = erased_byte(client, slot);
    if (plan->model_size < HEADER_BYTES || plan->model_size > room || plan->model_size % UNIT != 0 ||
        fedmote_load_u32(slot + SIZE_AT) != plan->model_size ||
        memcmp(slot + HASH_AT, plan->model_hash, sizeof plan->model_hash) != 0 || (uint8_t)(erased + 1U) > 1U ||
        !is_all(slot + room, erased, FEDMOTE_SLOT_END_BYTES)) {
        return false;
    }
    const uint32_t end = written(client, slot, plan->model_size);
    const uint32_t offset = (end - 1) / window * window;
    if (client->port->patching && plan->difference_size != 0 && plan->difference_size < plan->model_size - end) {
        return false;
    }
    struct fedmote_receiver *receiver = &client->receiver;
    fedmote_receiver_begin(receiver, plan->model_handle, plan->model_size, FEDMOTE_LIMIT_WINDOW, client->now);
    if (offset > 0) {
        receiver->offset = offset - window;
        receiver->missing = 0;
        fedmote_receiver_go_on(receiver, client->now);
    }
    look(client, receiver, slot);
    fedmote_receiver_go_on(receiver, client->now);
    client->fetch = FEDMOTE_FETCH_REST;
    fedmote_client_note(client, FEDMOTE_EVENT_RESUMED, (int32_t)offset);
    return true;
}

static int32_t keep(struct fedmote_client *client, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    const uint8_t *slot = spare_slot(client);
    const uint8_t erased = erased_byte(client, slot);
    uint32_t first = 0; /* of the units that are to be written together */
    int32_t status = FEDMOTE_OK;
    for (uint32_t at = 0; at <= size && status == FEDMOTE_OK; at += UNIT) {
        const bool is_same = at == size || memcmp(slot + offset + at, bytes + at, UNIT) == 0;
        if (!is_same && !is_all(slot + offset + at, erased, UNIT)) {
            client->fetch = FEDMOTE_FETCH_ERASE;
            return FEDMOTE_OK;
        }
        if (is_same && first < at) {
            status = fedmote_store_write(&client->store, offset + first, bytes + first, at - first);
        }
        first = is_same ? at + UNIT : first;
    }
    return status;
}

const struct fedmote_resuming fedmote_slot_resuming = {.begin = begin, .keep = keep};
