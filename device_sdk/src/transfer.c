/* SPDX-License-Identifier: Apache-2.0 */
#include "transfer.h"

/* HOLES_MS is long enough for chunks that overtook each other, and short beside a window on a slow line. */
enum { ASK_AGAIN_MS = 1000, HOLES_MS = 100 };

/* Mask of the chunks of the window that lie below the blob's end. */
static uint32_t window_mask(const struct fedmote_receiver *receiver) {
    uint32_t left = receiver->size - receiver->offset;
    uint32_t chunks = left / FEDMOTE_CHUNK_MAX + (left % FEDMOTE_CHUNK_MAX != 0);
    chunks = chunks < receiver->window ? chunks : receiver->window;
    return chunks >= FEDMOTE_LIMIT_WINDOW ? 0xFFFFFFFFU : (1U << chunks) - 1;
}

void fedmote_receiver_begin(struct fedmote_receiver *receiver, uint32_t handle, uint32_t size, uint32_t window,
                            uint32_t now) {
    *receiver = (struct fedmote_receiver){.handle = handle, .size = size, .window = window, .asked_at = now};
    receiver->missing = window_mask(receiver);
}

void fedmote_receiver_ask(struct fedmote_receiver *receiver, struct fedmote_message *get, uint32_t now) {
    fedmote_message_begin(get, FEDMOTE_KIND_GET);
    fedmote_message_number(get, FEDMOTE_FIELD_HANDLE, receiver->handle);
    fedmote_message_number(get, FEDMOTE_FIELD_OFFSET, receiver->offset);
    fedmote_message_number(get, FEDMOTE_FIELD_CHUNK, FEDMOTE_CHUNK_MAX);
    fedmote_message_number(get, FEDMOTE_FIELD_MASK, receiver->missing);
    receiver->asked_at = now + ASK_AGAIN_MS;
}

int32_t fedmote_receiver_accept(const struct fedmote_receiver *receiver, const struct fedmote_message *data) {
    uint32_t offset = data->number[FEDMOTE_FIELD_OFFSET];
    if (data->number[FEDMOTE_FIELD_HANDLE] != receiver->handle || offset < receiver->offset ||
        offset >= receiver->size) {
        return -1;
    }
    uint32_t bit = (offset - receiver->offset) / FEDMOTE_CHUNK_MAX;
    uint32_t left = receiver->size - offset;
    uint32_t expected = left < FEDMOTE_CHUNK_MAX ? left : FEDMOTE_CHUNK_MAX;
    bool is_wanted = (offset - receiver->offset) % FEDMOTE_CHUNK_MAX == 0 && bit < FEDMOTE_LIMIT_WINDOW &&
                     (receiver->missing >> bit & 1) != 0 && data->number[FEDMOTE_FIELD_DATA] == expected;
    return is_wanted ? (int32_t)bit : -1;
}

void fedmote_receiver_done(struct fedmote_receiver *receiver, int32_t bit, uint32_t now) {
    receiver->missing &= ~(1U << bit);
    /* Chunks come in their order: where only earlier ones are missing, none of them will come by itself. */
    receiver->asked_at = now + (receiver->missing >> bit == 0 ? HOLES_MS : ASK_AGAIN_MS);
}

void fedmote_receiver_go_on(struct fedmote_receiver *receiver, uint32_t now) {
    uint32_t window = receiver->window * FEDMOTE_CHUNK_MAX;
    if (receiver->missing == 0 && receiver->size - receiver->offset > window) {
        receiver->offset += window;
        receiver->missing = window_mask(receiver);
        receiver->asked_at = now;
    }
}

void fedmote_offer_open(struct fedmote_offer *offer, uint32_t size, uint32_t crc, uint32_t now) {
    *offer = (struct fedmote_offer){.is_open = true, .handle = crc, .size = size, .crc = crc, .announce_at = now};
}

int32_t fedmote_offer_ask(struct fedmote_offer *offer, const struct fedmote_message *get) {
    uint32_t offset = get->number[FEDMOTE_FIELD_OFFSET];
    uint32_t chunk = get->number[FEDMOTE_FIELD_CHUNK];
    if (chunk > FEDMOTE_CHUNK_MAX) {
        return FEDMOTE_ERR_BODY_TOO_LARGE;
    }
    bool is_same_window = offer->offset == offset && offer->chunk == chunk;
    offer->pending = get->number[FEDMOTE_FIELD_MASK] | (is_same_window ? offer->pending : 0);
    offer->offset = offset;
    offer->chunk = chunk;
    return FEDMOTE_OK;
}

bool fedmote_offer_next(struct fedmote_offer *offer, uint32_t *offset, uint32_t *size) {
    for (uint32_t i = 0; offer->pending != 0 && i < FEDMOTE_LIMIT_WINDOW; i++) {
        if ((offer->pending >> i & 1) == 0) {
            continue;
        }
        uint64_t begin = (uint64_t)offer->offset + (uint64_t)i * offer->chunk;
        if (begin >= offer->size) { /* this one and all after it lie beyond the end */
            offer->pending = 0;
            return false;
        }
        offer->pending &= ~(1U << i);
        *offset = (uint32_t)begin;
        *size = offer->size - *offset < offer->chunk ? offer->size - *offset : offer->chunk;
        return true;
    }
    return false;
}
