/* SPDX-License-Identifier: Apache-2.0
 *
 * Sealed messages under a key that the coordinator may renew (protocol/SPEC.md, section 11): a one-time token becomes a
 * lasting key, an old key a new one. Linked where a port names `fedmote_renewable_sealing`, in the place of
 * `fedmote_message_sealing`, which does the sealing.
 */
#include "client.h"
#include "seal.h"
#include "wipe.h"

static int32_t begin(struct fedmote_client *client) { return fedmote_message_sealing.begin(client); }

static uint32_t close(struct fedmote_client *client, uint8_t channel, uint8_t kind, uint32_t size) {
    return fedmote_message_sealing.close(client, channel, kind, size);
}

/* The new key is durable before it is used. Where it is not, the old one stays: the coordinator says it again. */
static void take(struct fedmote_client *client, const struct fedmote_frame *frame) {
    struct fedmote_message message;
    if (fedmote_decode(&message, frame->kind, frame->body, frame->size) == FEDMOTE_OK &&
        client->port->journal->keep_key(client, message.bytes[FEDMOTE_FIELD_SECRET])) {
        fedmote_client_note(client, FEDMOTE_EVENT_REKEYED, 0);
        client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
        fedmote_client_hello_in(client, 0); /* the coordinator waits for a message under it */
    }
    fedmote_wipe(client->line.receive + (frame->body - client->line.receive), frame->size);
}

static bool open(struct fedmote_client *client, struct fedmote_frame *frame) {
    if (!fedmote_message_sealing.open(client, frame)) {
        return false;
    }
    if (!client->identity.key || frame->kind != FEDMOTE_KIND_REKEY || frame->channel != FEDMOTE_CHANNEL_COORDINATOR) {
        return true;
    }
    take(client, frame);
    return false;
}

const struct fedmote_sealing fedmote_renewable_sealing = {begin, close, open};
