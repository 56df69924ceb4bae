/* SPDX-License-Identifier: Apache-2.0
 *
 * The trailer lies behind the body, so that both are sealed and opened where they are. What is only authenticated (the
 * header, and the whole of a hello) must be one piece for the cipher: it is put in front of the body, where a link
 * writes its own header later.
 */
#include "seal.h"

#include <string.h>

#include "client.h"
#include "little_endian.h"

enum { UP = 0, DOWN = 1, HEADER = 5, NONCE = 24, COUNTERS = 8, SEAL = FEDMOTE_LIMIT_SEAL, SILENCE = 3 };

typedef char fedmote_header_fits_in_front[FEDMOTE_BODY_OFFSET >= HEADER + FEDMOTE_LIMIT_IDENTIFIER ? 1 : -1];

static const uint8_t *key_of(const struct fedmote_client *client, uint8_t channel) {
    return channel == FEDMOTE_CHANNEL_CELL ? client->identity.cell_key : client->identity.key;
}

static void make_nonce(uint8_t nonce[NONCE], uint8_t direction, uint8_t channel, uint32_t epoch, uint32_t boot,
                       uint32_t sequence) {
    memset(nonce, 0, NONCE);
    nonce[0] = direction;
    nonce[1] = channel;
    fedmote_put_u32(nonce + 4, epoch);
    fedmote_put_u32(nonce + 8, boot);
    fedmote_put_u32(nonce + 12, sequence);
}

/* Writes what is authenticated of every message; returns its size, HEADER + FEDMOTE_LIMIT_IDENTIFIER at most. */
static uint32_t put_header(const struct fedmote_client *client, uint8_t *out, uint8_t direction, uint8_t channel,
                           uint8_t kind) {
    uint32_t size = (uint32_t)strlen(client->identity.id);
    out[0] = FEDMOTE_LIMIT_PROTOCOL;
    out[1] = kind;
    out[2] = direction;
    out[3] = channel;
    out[4] = (uint8_t)size;
    memcpy(out + HEADER, client->identity.id, size);
    return HEADER + size;
}

/* Without a number of its own for this boot a device would seal two messages under one nonce. */
static int32_t begin(struct fedmote_client *client) {
    if (!client->port->crypto) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    if (!client->identity.cell_key) {
        client->identity.is_sending_samples = 0; /* nobody but the own partner may read them */
    }
    return client->line.is_boot_counted ? FEDMOTE_OK : FEDMOTE_ERR_SLOT_IO;
}

static uint32_t close(struct fedmote_client *client, uint8_t channel, uint8_t kind, uint32_t size) {
    struct fedmote_seal_channel *own = &client->seal.channels[channel];
    const uint8_t *key = key_of(client, channel);
    if (!client->identity.key) {
        return size;
    }
    if (!key || own->next == UINT32_MAX) { /* a number is never used twice: the next boot has new ones */
        return 0;
    }
    uint8_t *body = client->line.transmit + FEDMOTE_BODY_OFFSET;
    uint8_t *associated = body - HEADER - strlen(client->identity.id);
    uint32_t header_size = put_header(client, associated, UP, channel, kind);
    uint32_t hidden = kind == FEDMOTE_KIND_HELLO ? 0 : size;
    bool is_greeting = kind != FEDMOTE_KIND_DATA && own->silence >= SILENCE;
    uint8_t nonce[NONCE];
    make_nonce(nonce, UP, channel, is_greeting ? 0 : own->epoch, client->line.boot, own->next);
    client->port->crypto->lock(body, hidden, body + size + COUNTERS, key, nonce, associated,
                               header_size + size - hidden);
    fedmote_put_u32(body + size, client->line.boot);
    fedmote_put_u32(body + size + 4, own->next++);
    if (kind != FEDMOTE_KIND_DATA && own->silence < SILENCE) {
        own->silence++;
    }
    return size + SEAL;
}

/* Whether a message of this epoch and sequence is new; then it is taken. */
static bool take(struct fedmote_seal_channel *own, uint32_t epoch, uint32_t sequence) {
    if (epoch < own->epoch || epoch == 0) {
        return false;
    }
    if (epoch > own->epoch) {
        own->epoch = epoch;
        own->newest = sequence;
        own->taken = 0;
    }
    if (sequence > own->newest) {
        uint32_t distance = sequence - own->newest;
        own->taken = distance < FEDMOTE_LIMIT_SEAL_WINDOW ? own->taken << distance : 0;
        own->newest = sequence;
    }
    uint32_t age = own->newest - sequence;
    if (age >= FEDMOTE_LIMIT_SEAL_WINDOW || (own->taken >> age & 1) != 0) {
        return false;
    }
    own->taken |= (uint64_t)1 << age;
    return true;
}

/* The peer began anew and knows nothing of what it was asked: it is asked again at once. */
static void repeat(struct fedmote_client *client) {
    client->receiver.asked_at = client->now;
    client->update.announce_at = client->now;
    client->samples.announce_at = client->now;
}

static bool refuse(struct fedmote_client *client, uint32_t *count, int32_t status) {
    (*count)++;
    fedmote_line_drop(&client->line, status);
    return false;
}

static bool open(struct fedmote_client *client, struct fedmote_frame *frame) {
    struct fedmote_seal_channel *own = &client->seal.channels[frame->channel];
    const uint8_t *key = key_of(client, frame->channel);
    if (!client->identity.key) {
        return true;
    }
    if (!key || frame->size < SEAL) {
        return refuse(client, &client->seal.forged, FEDMOTE_ERR_AUTH);
    }
    uint8_t *body = client->line.receive + (frame->body - client->line.receive); /* the same bytes, ours to change */
    uint32_t size = frame->size - SEAL;
    uint32_t epoch = fedmote_load_u32(body + size);
    uint32_t sequence = fedmote_load_u32(body + size + 4);
    uint8_t header[HEADER + FEDMOTE_LIMIT_IDENTIFIER];
    uint32_t header_size = put_header(client, header, DOWN, frame->channel, frame->kind);
    uint8_t nonce[NONCE];
    make_nonce(nonce, DOWN, frame->channel, epoch, client->line.boot, sequence);
    if (client->port->crypto->unlock(body, size, body + size + COUNTERS, key, nonce, header, header_size) != 0) {
        return refuse(client, &client->seal.forged, FEDMOTE_ERR_AUTH);
    }
    uint32_t former = own->epoch;
    if (!take(own, epoch, sequence)) {
        return refuse(client, &client->seal.replayed, FEDMOTE_ERR_REPLAY);
    }
    own->silence = 0;
    frame->size = size;
    if (epoch != former) {
        repeat(client);
    }
    return true;
}

const struct fedmote_sealing fedmote_message_sealing = {begin, close, open};
