/* SPDX-License-Identifier: Apache-2.0
 *
 * What is to be said, most urgent first: refusals, hello, questions, answers, announcements. Messages are composed in
 * the transmit buffer where the link wants their body; chunks are written behind their CBOR without a copy.
 */
#include <stddef.h>
#include <string.h>

#include "client.h"
#include "samples.h"
#include "update.h"

enum { ANNOUNCE_MS = 2000 };

static uint8_t *body(const struct fedmote_client *client) { return client->line.transmit + FEDMOTE_BODY_OFFSET; }

/* Composes a message, which leaves when its struct, the largest thing on the stack here, is gone. Our own always fit:
 * FEDMOTE_BODY_MAX has a lower bound and names have an upper one. */
static void say(struct fedmote_client *client, uint8_t channel, const struct fedmote_message *message) {
    int32_t size = fedmote_encode(message, body(client), FEDMOTE_BODY_MAX - FEDMOTE_LIMIT_SEAL);
    client->said_size = size > 0 ? (uint32_t)size : 0;
    client->said_channel = channel;
    client->said_kind = message->kind;
}

/* Sends what was composed. */
static void send(struct fedmote_client *client) {
    uint32_t size = client->said_size;
    if (size > 0 && client->port->sealing) {
        size = client->port->sealing->close(client, client->said_channel, client->said_kind, size);
    }
    if (size > 0) {
        client->identity.link->send(&client->line, client->said_channel, client->said_kind, size);
    }
}

/* A field of a message, and where its number is in the client. */
struct number {
    uint16_t field, offset;
};

static void put_numbers(const struct fedmote_client *client, struct fedmote_message *message,
                        const struct number *numbers, uint32_t count) {
    for (; count-- > 0; numbers++) {
        uint32_t value;
        memcpy(&value, (const uint8_t *)client + numbers->offset, sizeof value);
        fedmote_message_number(message, numbers->field, value);
    }
}

static void put_round(const struct fedmote_client *client, struct fedmote_message *message) {
    fedmote_message_string(message, FEDMOTE_FIELD_RUN, client->round.plan.run, sizeof client->round.plan.run);
    fedmote_message_number(message, FEDMOTE_FIELD_ROUND, client->round.plan.round);
}

static void put_text(struct fedmote_message *message, uint32_t field, const char *text) {
    fedmote_message_string(message, field, text, (uint32_t)strlen(text));
}

static void say_refusal(struct fedmote_client *client) {
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_REFUSE);
    fedmote_message_number(&message, FEDMOTE_FIELD_STATUS, (uint32_t)-client->refusal);
    if (client->is_refusal_of_round) {
        put_round(client, &message);
    }
    if (client->has_refusal_handle) {
        fedmote_message_number(&message, FEDMOTE_FIELD_HANDLE, client->refusal_handle);
    }
    client->refusal = FEDMOTE_OK;
    say(client, client->refusal_channel, &message);
}

static void say_hello(struct fedmote_client *client) {
    const struct fedmote_port *port = client->port;
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_HELLO);
    put_text(&message, FEDMOTE_FIELD_DEVICE, client->identity.id);
    put_text(&message, FEDMOTE_FIELD_BOARD, client->identity.board);
    put_text(&message, FEDMOTE_FIELD_SDK, FEDMOTE_VERSION);
    fedmote_message_number(&message, FEDMOTE_FIELD_ROLE, FEDMOTE_ROLE_DEVICE);
    fedmote_message_number(&message, FEDMOTE_FIELD_BOOT, client->line.boot);
    fedmote_message_number(&message, FEDMOTE_FIELD_PROTOCOL, FEDMOTE_LIMIT_PROTOCOL);
    fedmote_message_number(&message, FEDMOTE_FIELD_MAX_BODY, FEDMOTE_BODY_MAX);
    fedmote_message_number(&message, FEDMOTE_FIELD_ARENA_BYTES, client->arena_bytes);
    fedmote_message_number(&message, FEDMOTE_FIELD_SLOT_BYTES, fedmote_store_room(&client->store));
    fedmote_message_number(&message, FEDMOTE_FIELD_NUM_SAMPLES, port->sample_count(port->context));
    fedmote_message_number(&message, FEDMOTE_FIELD_FRAME_ERRORS, client->line.frame_errors);
    if (port->patching) {
        fedmote_message_number(&message, FEDMOTE_FIELD_DIFFERENCE_FORMAT, port->patching->format);
    }
    const uint8_t *hash = fedmote_store_hash(&client->store);
    if (hash) {
        fedmote_message_string(&message, FEDMOTE_FIELD_MODEL_HASH, hash, 32);
    }
    if (client->has_plan) {
        put_round(client, &message);
    }
    client->hello.is_set = false;
    if (client->state == FEDMOTE_STATE_IDLE || client->state == FEDMOTE_STATE_REPORT) {
        fedmote_client_back_off(client); /* until it is answered; while working, once is enough */
    }
    say(client, FEDMOTE_CHANNEL_COORDINATOR, &message);
}

static bool is_fetching(const struct fedmote_client *client) {
    return client->receiver.missing != 0 && client->fetch >= FEDMOTE_FETCH_MODEL;
}

static void say_get(struct fedmote_client *client) {
    struct fedmote_message message;
    fedmote_receiver_ask(&client->receiver, &message, client->now);
    say(client, FEDMOTE_CHANNEL_COORDINATOR, &message);
}

/* The next chunk of an offer; false where none was asked for. */
static bool say_data(struct fedmote_client *client, struct fedmote_offer *offer, uint8_t channel) {
    uint32_t offset = 0;
    uint32_t size = 0;
    if (!offer->is_open || !fedmote_offer_next(offer, &offset, &size)) {
        return false;
    }
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_DATA);
    fedmote_message_number(&message, FEDMOTE_FIELD_HANDLE, offer->handle);
    fedmote_message_number(&message, FEDMOTE_FIELD_OFFSET, offset);
    fedmote_message_string(&message, FEDMOTE_FIELD_DATA, NULL, size); /* the last field: its bytes end the body */
    say(client, channel, &message);
    if (client->said_size == 0) {
        return false;
    }
    uint8_t *chunk = body(client) + client->said_size - size;
    int32_t status = FEDMOTE_OK;
    if (channel == FEDMOTE_CHANNEL_CELL) {
        status = fedmote_samples_read(&client->round, offset, chunk, size);
    } else {
        fedmote_update_read(&client->round, offset, chunk, size);
    }
    if (status != FEDMOTE_OK) { /* the samples cannot be read any more: the offer ends, the training does not */
        offer->is_open = false;
        client->said_size = 0;
        fedmote_client_note(client, FEDMOTE_EVENT_ERROR, status);
    }
    offer->announce_at = client->now + ANNOUNCE_MS;
    return true;
}

static bool is_announcement_due(const struct fedmote_offer *offer, uint32_t now) {
    return offer->is_open && fedmote_until(offer->announce_at, now) == 0;
}

static void put_offer(struct fedmote_client *client, struct fedmote_offer *offer, struct fedmote_message *message) {
    fedmote_message_number(message, FEDMOTE_FIELD_HANDLE, offer->handle);
    fedmote_message_number(message, FEDMOTE_FIELD_SIZE, offer->size);
    fedmote_message_number(message, FEDMOTE_FIELD_CRC, offer->crc);
    put_round(client, message);
    offer->announce_at = client->now + ANNOUNCE_MS;
}

/* A mean loss in millionths; what is no number or too large is the largest. */
static uint32_t micro(float sum, uint32_t count) {
    float mean = sum / (float)count * 1e6f;
    return mean < 4294967040.0f ? (uint32_t)mean : UINT32_MAX;
}

static void say_report(struct fedmote_client *client) {
    static const struct number reported[] = {
        {FEDMOTE_FIELD_NUM_EXAMPLES, offsetof(struct fedmote_client, round.results.num_examples)},
        {FEDMOTE_FIELD_VERSION, offsetof(struct fedmote_client, round.plan.version)},
        {FEDMOTE_FIELD_ATTEMPT, offsetof(struct fedmote_client, round.plan.attempt)},
        {FEDMOTE_FIELD_DISCARDED, offsetof(struct fedmote_client, round.results.discarded)},
        {FEDMOTE_FIELD_TRAINED, offsetof(struct fedmote_client, round.results.trained)},
        {FEDMOTE_FIELD_SENT, offsetof(struct fedmote_client, round.results.sent)},
    };
    const struct fedmote_round *round = &client->round;
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_REPORT);
    put_offer(client, &client->update, &message);
    put_numbers(client, &message, reported, sizeof reported / sizeof *reported);
    fedmote_message_number(&message, FEDMOTE_FIELD_LOSS_MICRO, micro(round->results.loss_sum, round->sample_count));
    if (round->results.last_trained > 0) {
        uint32_t loss = micro(round->results.last_loss_sum, round->results.last_trained);
        fedmote_message_number(&message, FEDMOTE_FIELD_LOSS_AFTER_MICRO, loss);
    }
    fedmote_message_number(&message, FEDMOTE_FIELD_ARENA_USED_BYTES, fedmote_round_arena_used(round));
    if (client->masks.step > 0) {
        fedmote_message_number(&message, FEDMOTE_FIELD_MASK_STEP, client->masks.step);
    }
    say(client, FEDMOTE_CHANNEL_COORDINATOR, &message);
}

static void say_samples(struct fedmote_client *client) {
    struct fedmote_message message;
    fedmote_message_begin(&message, FEDMOTE_KIND_SAMPLES);
    put_offer(client, &client->samples, &message);
    fedmote_message_number(&message, FEDMOTE_FIELD_COUNT, client->round.results.sent);
    fedmote_message_number(&message, FEDMOTE_FIELD_INPUT_BYTES, client->round.package.input_count);
    say(client, FEDMOTE_CHANNEL_CELL, &message);
}

bool fedmote_client_speak(struct fedmote_client *client) {
    if (!fedmote_line_is_free(&client->line)) {
        return false;
    }
    if (client->refusal != FEDMOTE_OK) {
        say_refusal(client);
    } else if (client->hello.is_set && fedmote_until(client->hello.at, client->now) == 0) {
        say_hello(client);
    } else if (is_fetching(client) && fedmote_until(client->receiver.asked_at, client->now) == 0) {
        say_get(client);
    } else if (!say_data(client, &client->update, FEDMOTE_CHANNEL_COORDINATOR) &&
               !say_data(client, &client->samples, FEDMOTE_CHANNEL_CELL)) {
        if (is_announcement_due(&client->update, client->now)) {
            say_report(client);
        } else if (is_announcement_due(&client->samples, client->now)) {
            say_samples(client);
        } else {
            return false;
        }
    }
    send(client);
    return true;
}

static uint32_t earlier(uint32_t wake, bool is_set, uint32_t at, uint32_t now) {
    uint32_t until = is_set ? fedmote_until(at, now) : UINT32_MAX;
    return until < wake ? until : wake;
}

uint32_t fedmote_client_speak_wake_ms(const struct fedmote_client *client, uint32_t now) {
    if (!client->line.is_up) {
        return UINT32_MAX; /* the link wakes by itself */
    }
    uint32_t wake = earlier(UINT32_MAX, client->hello.is_set, client->hello.at, now);
    wake = earlier(wake, is_fetching(client), client->receiver.asked_at, now);
    wake = earlier(wake, client->update.is_open, client->update.announce_at, now);
    return earlier(wake, client->samples.is_open, client->samples.announce_at, now);
}
