/* SPDX-License-Identifier: Apache-2.0
 *
 * What each message does to the machine. Whatever comes in a state that does not expect it is ignored, so duplicates,
 * late and replayed messages need no case of their own.
 */
#include <stddef.h>
#include <string.h>

#include "client.h"

static void queue_refusal(struct fedmote_client *client, uint8_t channel, int32_t status,
                          const struct fedmote_message *about) {
    if (client->refusal != FEDMOTE_OK) {
        return;
    }
    client->refusal = status;
    client->refusal_channel = channel;
    client->is_refusal_of_round = false;
    client->has_refusal_handle = about != NULL;
    client->refusal_handle = about ? about->number[FEDMOTE_FIELD_HANDLE] : 0;
}

/* ---- plan ---------------------------------------------------------------------------------------------------------
 */

bool fedmote_client_is_current_run(const struct fedmote_client *client, const struct fedmote_message *message) {
    const uint8_t *run = client->round.plan.run;
    return client->has_plan && fedmote_message_has(message, FEDMOTE_FIELD_RUN) &&
           memcmp(run, message->bytes[FEDMOTE_FIELD_RUN], sizeof client->round.plan.run) == 0;
}

/* Where each number of a plan goes; what an optional one is where it is absent. */
struct plan_number {
    uint8_t field;
    uint8_t offset;
    int16_t otherwise; /* -1: the largest there is */
};

#define PLAN_NUMBER(field, member, otherwise)                                                                          \
    { field, (uint8_t)offsetof(struct fedmote_plan, member), otherwise }

static const struct plan_number plan_numbers[] = {
    PLAN_NUMBER(FEDMOTE_FIELD_ROUND, round, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_ATTEMPT, attempt, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_VERSION, version, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_MODEL_HANDLE, model_handle, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_MODEL_SIZE, model_size, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_SERIAL, serial, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_DIFFERENCE_HANDLE, difference_handle, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_DIFFERENCE_SIZE, difference_size, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_HEAD_HANDLE, head_handle, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_HEAD_SIZE, head_size, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_HEAD_CRC, head_crc, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_SEED, seed, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_EPOCHS, epochs, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_BATCH, batch, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_LEARNING_RATE_MICRO, training.learning_rate_micro, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_MOMENTUM_MICRO, training.momentum_micro, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_WEIGHT_DECAY_MICRO, training.weight_decay_micro, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_CLIP_NORM_MICRO, training.clip_norm_micro, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_LOSS, training.loss, FEDMOTE_LOSS_CROSS_ENTROPY),
    PLAN_NUMBER(FEDMOTE_FIELD_TRAINED_LAYERS, training.trained_layers, -1),
    PLAN_NUMBER(FEDMOTE_FIELD_GAMMA_ORDER, gamma_order, 0),
    PLAN_NUMBER(FEDMOTE_FIELD_GAIN_MILLI, gain_milli, 1000),
    PLAN_NUMBER(FEDMOTE_FIELD_MAX_SEND, max_send, -1),
};

static float thousandths(const struct fedmote_message *message, uint32_t field) {
    return (float)fedmote_message_get(message, field, 0) / 1e3f;
}

static bool is_one(const struct fedmote_message *message, uint32_t field) {
    return fedmote_message_get(message, field, 0) == 1;
}

static void read_plan(struct fedmote_plan *plan, const struct fedmote_message *message, bool may_send) {
    memcpy(plan->run, message->bytes[FEDMOTE_FIELD_RUN], sizeof plan->run);
    memcpy(plan->model_hash, message->bytes[FEDMOTE_FIELD_MODEL_HASH], sizeof plan->model_hash);
    for (uint32_t i = 0; i < sizeof plan_numbers / sizeof *plan_numbers; i++) {
        const struct plan_number *number = &plan_numbers[i];
        const uint32_t value = fedmote_message_get(message, number->field, (uint32_t)number->otherwise);
        memcpy((uint8_t *)plan + number->offset, &value, sizeof value);
    }
    plan->has_head = fedmote_message_has(message, FEDMOTE_FIELD_HEAD_HANDLE);
    plan->training.is_bias_only = is_one(message, FEDMOTE_FIELD_IS_BIAS_ONLY);
    plan->alpha = thousandths(message, FEDMOTE_FIELD_ALPHA_MILLI);
    plan->beta = thousandths(message, FEDMOTE_FIELD_BETA_MILLI);
    plan->gamma = thousandths(message, FEDMOTE_FIELD_GAMMA_MILLI);
    plan->is_sending_samples = may_send && is_one(message, FEDMOTE_FIELD_IS_SENDING_SAMPLES);
}

static void set_deadline(struct fedmote_client *client, uint32_t remaining_ms) {
    client->deadline.is_set = true;
    client->deadline.at = client->now + (remaining_ms < 0x7FFFFFFFU ? remaining_ms : 0x7FFFFFFFU);
    client->is_round_closed = false;
}

/* Who signed the package, and who may see the update. */
static int32_t check_plan(struct fedmote_client *client, const struct fedmote_message *message) {
    const struct fedmote_port *port = client->port;
    int32_t status = port->signing ? port->signing->check(client, message) : FEDMOTE_OK;
    if (status == FEDMOTE_OK && port->masking) {
        status = port->masking->check(client, message);
    } else if (status == FEDMOTE_OK && fedmote_message_has(message, FEDMOTE_FIELD_MASKING)) {
        status = FEDMOTE_ERR_MASK_GROUP;
    }
    return status;
}

/* Whatever was going on is over. */
static void begin_plan(struct fedmote_client *client, const struct fedmote_message *message) {
    client->update.is_open = false;
    client->samples.is_open = false;
    if (client->is_refusal_of_round) {
        client->refusal = FEDMOTE_OK; /* it would be said in the name of the new round */
    }
    client->is_round_finished = false;
    client->has_plan = true;
    client->error = FEDMOTE_OK;
    client->where = "";
    client->hello.is_set = false;
    read_plan(&client->round.plan, message, client->identity.is_sending_samples != 0);
    set_deadline(client, message->number[FEDMOTE_FIELD_REMAINING_MS]);
    fedmote_client_note(client, FEDMOTE_EVENT_PLAN, (int32_t)client->round.plan.round);
    const int32_t status = check_plan(client, message);
    if (status != FEDMOTE_OK) {
        fedmote_client_fail(client, status, "plan", true);
        return;
    }
    client->fetch = FEDMOTE_FETCH_CHOOSE;
    fedmote_client_go(client, FEDMOTE_STATE_FETCH);
}

/* The plan of the round that this device knows already. Its highest attempt is the one that reports name: plans for
 * hellos of earlier boots may still come. */
static void hear_same_plan(struct fedmote_client *client, const struct fedmote_message *message) {
    const uint32_t known = client->round.plan.attempt;
    const uint32_t attempt = fedmote_message_get(message, FEDMOTE_FIELD_ATTEMPT, 0);
    if (client->state != FEDMOTE_STATE_IDLE) {
        client->hello.is_set = false; /* it answers a hello after a lost link; the work goes on */
        if (client->state == FEDMOTE_STATE_REPORT) {
            client->update.announce_at = client->now; /* the answer is the same report once more */
            set_deadline(client, message->number[FEDMOTE_FIELD_REMAINING_MS]);
        }
    } else if (!client->is_round_finished || attempt > known) {
        begin_plan(client, message);
    }
    client->round.plan.attempt = attempt > known ? attempt : known;
}

static void hear_plan(struct fedmote_client *client, const struct fedmote_message *message) {
    uint32_t round = message->number[FEDMOTE_FIELD_ROUND];
    bool has_some_head = fedmote_message_has(message, FEDMOTE_FIELD_HEAD_HANDLE);
    bool has_whole_head =
        fedmote_message_has(message, FEDMOTE_FIELD_HEAD_SIZE) && fedmote_message_has(message, FEDMOTE_FIELD_HEAD_CRC);
    if (message->number[FEDMOTE_FIELD_PHASE] == FEDMOTE_PHASE_PARTNER) {
        queue_refusal(client, FEDMOTE_CHANNEL_COORDINATOR, FEDMOTE_ERR_NOT_EXPECTED, NULL);
    } else if (has_some_head && !has_whole_head) {
        queue_refusal(client, FEDMOTE_CHANNEL_COORDINATOR, FEDMOTE_ERR_MISSING_FIELD, NULL);
    } else if (!fedmote_client_is_current_run(client, message) || round > client->round.plan.round) {
        begin_plan(client, message);
    } else if (round == client->round.plan.round) {
        hear_same_plan(client, message);
    } /* else: an earlier round, late */
}

/* ---- transfers ----------------------------------------------------------------------------------------------------
 */

static void hear_get(struct fedmote_client *client, uint8_t channel, const struct fedmote_message *message) {
    struct fedmote_offer *offer = channel == FEDMOTE_CHANNEL_CELL ? &client->samples : &client->update;
    int32_t status = FEDMOTE_ERR_STALE_ROUND;
    if (offer->is_open && offer->handle == message->number[FEDMOTE_FIELD_HANDLE]) {
        status = fedmote_offer_ask(offer, message);
    }
    if (status != FEDMOTE_OK) {
        queue_refusal(client, channel, status, message);
    }
}

static void hear_data(struct fedmote_client *client, const struct fedmote_message *message) {
    if (client->fetch < FEDMOTE_FETCH_MODEL) {
        return;
    }
    int32_t bit = fedmote_receiver_accept(&client->receiver, message);
    if (bit < 0) {
        return;
    }
    uint32_t offset = message->number[FEDMOTE_FIELD_OFFSET];
    uint32_t size = message->number[FEDMOTE_FIELD_DATA];
    const uint8_t *bytes = message->bytes[FEDMOTE_FIELD_DATA];
    if (client->fetch <= FEDMOTE_FETCH_REST) {
        int32_t status = client->fetch == FEDMOTE_FETCH_MODEL
                             ? fedmote_store_write(&client->store, offset, bytes, size)
                             : client->port->resuming->keep(client, offset, bytes, size);
        if (status != FEDMOTE_OK) {
            fedmote_client_fail(client, status, "write", true);
            return;
        }
    } else if (client->fetch == FEDMOTE_FETCH_HEAD) {
        memcpy((uint8_t *)fedmote_round_head_base(&client->round) + offset, bytes, size);
    } else {
        client->port->patching->keep(client, offset, bytes, size);
    }
    fedmote_receiver_done(&client->receiver, bit, client->now);
    if (client->fetch != FEDMOTE_FETCH_DIFFERENCE) { /* whose windows wait until they are worked off */
        fedmote_receiver_go_on(&client->receiver, client->now);
    }
}

/* ---- answers ------------------------------------------------------------------------------------------------------
 */

/* The update is safe, or unwanted: it is not kept any longer. Samples stay on offer until the round closes. */
static void drop_update(struct fedmote_client *client) {
    client->update.is_open = false;
    client->is_round_finished = true;
    if (client->port->journal) {
        client->port->journal->drop(client);
    }
    fedmote_client_go(client, FEDMOTE_STATE_IDLE);
}

static void hear_ack(struct fedmote_client *client, uint8_t channel, const struct fedmote_message *message) {
    struct fedmote_offer *offer = channel == FEDMOTE_CHANNEL_CELL ? &client->samples : &client->update;
    const uint32_t *number = message->number;
    bool is_expected = offer->is_open && fedmote_client_is_current_run(client, message) &&
                       number[FEDMOTE_FIELD_HANDLE] == offer->handle &&
                       number[FEDMOTE_FIELD_ROUND] == client->round.plan.round;
    if (!is_expected) {
        return;
    }
    if (channel == FEDMOTE_CHANNEL_CELL) {
        client->samples.is_open = false;
        return;
    }
    drop_update(client);
    client->rounds_done++;
    client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
    fedmote_client_note(client, FEDMOTE_EVENT_ACK, (int32_t)client->round.plan.round);
    fedmote_client_hello_in(client, 0);
}

/* Whether a refusal speaks of this handle, or, where it names none, of the current round. One that names neither, such
 * as the answer to an unknown kind, costs no update. */
static bool is_about(const struct fedmote_client *client, const struct fedmote_message *message, uint32_t handle) {
    if (fedmote_message_has(message, FEDMOTE_FIELD_HANDLE)) {
        return message->number[FEDMOTE_FIELD_HANDLE] == handle;
    }
    bool is_other_run =
        fedmote_message_has(message, FEDMOTE_FIELD_RUN) && !fedmote_client_is_current_run(client, message);
    return !is_other_run && fedmote_message_has(message, FEDMOTE_FIELD_ROUND) &&
           message->number[FEDMOTE_FIELD_ROUND] == client->round.plan.round;
}

static void hear_refuse(struct fedmote_client *client, uint8_t channel, const struct fedmote_message *message) {
    int32_t status = -(int32_t)message->number[FEDMOTE_FIELD_STATUS];
    fedmote_client_note(client, FEDMOTE_EVENT_REFUSED, status);
    if (channel == FEDMOTE_CHANNEL_CELL) {
        if (client->samples.is_open && is_about(client, message, client->samples.handle)) {
            client->samples.is_open = false;
        }
        return;
    }
    if (client->state == FEDMOTE_STATE_REPORT && is_about(client, message, client->update.handle)) {
        client->samples.is_open = client->samples.is_open && status != FEDMOTE_ERR_STALE_ROUND;
        drop_update(client);
        fedmote_client_back_off(client);
    } else if (client->state == FEDMOTE_STATE_FETCH && is_about(client, message, client->receiver.handle)) {
        if (client->fetch == FEDMOTE_FETCH_DIFFERENCE) {
            client->fetch = FEDMOTE_FETCH_ERASE; /* the whole package instead */
        } else {
            fedmote_client_fail(client, status, "fetch", false);
        }
    } else if (client->state == FEDMOTE_STATE_IDLE && client->hello.is_set) {
        fedmote_client_back_off(client); /* a refused hello: not sooner than that */
    }
}

static void hear_wait(struct fedmote_client *client, const struct fedmote_message *message) {
    if (client->state == FEDMOTE_STATE_IDLE || client->hello.is_set) {
        client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
        fedmote_client_hello_in(client, message->number[FEDMOTE_FIELD_WAIT_MS]);
    }
}

/* ---- all ----------------------------------------------------------------------------------------------------------
 */

void fedmote_client_hear(struct fedmote_client *client, const struct fedmote_frame *frame) {
    struct fedmote_message message;
    int32_t status = fedmote_decode(&message, frame->kind, frame->body, frame->size);
    if (status == FEDMOTE_ERR_UNKNOWN_KIND) {
        queue_refusal(client, frame->channel, status, NULL);
        return;
    }
    if (status != FEDMOTE_OK) {
        fedmote_line_drop(&client->line, status);
        return;
    }
    bool is_coordinator = frame->channel == FEDMOTE_CHANNEL_COORDINATOR;
    if (is_coordinator && client->port->masking && client->port->masking->hear(client, &message)) {
        return;
    }
    if (frame->kind == FEDMOTE_KIND_GET) {
        hear_get(client, frame->channel, &message);
    } else if (frame->kind == FEDMOTE_KIND_ACK) {
        hear_ack(client, frame->channel, &message);
    } else if (frame->kind == FEDMOTE_KIND_REFUSE) {
        hear_refuse(client, frame->channel, &message);
    } else if (is_coordinator && frame->kind == FEDMOTE_KIND_PLAN) {
        hear_plan(client, &message);
    } else if (is_coordinator && frame->kind == FEDMOTE_KIND_DATA) {
        hear_data(client, &message);
    } else if (is_coordinator && frame->kind == FEDMOTE_KIND_WAIT) {
        hear_wait(client, &message);
    } /* else: a message that devices send, or one of the other channel */
}
