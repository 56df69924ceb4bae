/* SPDX-License-Identifier: Apache-2.0
 *
 * One step hears one frame, or says one message, or does one piece of work. Hearing only sets what is to be said or
 * done: nothing is answered in place, so that a full send buffer never loses anything and every step stays bounded.
 */
#include "client.h"

#include <string.h>

#include "crc32.h"
#include "samples.h"
#include "update.h"

enum { ARENA_ALIGN = 16 };

typedef char fedmote_inside_is_large_enough[sizeof(struct fedmote_client) <= sizeof(struct fedmote) ? 1 : -1];

static struct fedmote_client *inside(struct fedmote *device) { return (struct fedmote_client *)(void *)device; }

static const struct fedmote_client *inside_const(const struct fedmote *device) {
    return (const struct fedmote_client *)(const void *)device;
}

/* ---- what all parts of the machine use ----------------------------------------------------------------------------
 */

void fedmote_client_note(struct fedmote_client *client, enum fedmote_event event, int32_t value) {
    if (client->port->event) {
        client->port->event(client->port->context, (int32_t)event, value);
    }
}

void fedmote_client_go(struct fedmote_client *client, enum fedmote_state state) {
    if (client->state != (uint8_t)state) {
        client->state = (uint8_t)state;
        client->fetch = FEDMOTE_FETCH_CHOOSE; /* nothing is fetched for a state that is left */
        fedmote_client_note(client, FEDMOTE_EVENT_STATE, (int32_t)state);
        if (client->port->masking) {
            client->port->masking->enter(client);
        }
    }
}

void fedmote_client_hello_in(struct fedmote_client *client, uint32_t delay_ms) {
    uint32_t longest = 0x7FFFFFFFU; /* beyond it, `until` could not tell the future from the past */
    client->hello.is_set = true;
    client->hello.at = client->now + (delay_ms < longest ? delay_ms : longest);
}

void fedmote_client_back_off(struct fedmote_client *client) {
    fedmote_client_hello_in(client, fedmote_jitter(client->port, client->backoff_ms));
    client->backoff_ms = client->backoff_ms < FEDMOTE_HELLO_MAX_MS / 2 ? client->backoff_ms * 2 : FEDMOTE_HELLO_MAX_MS;
}

void fedmote_client_fail(struct fedmote_client *client, int32_t status, const char *where, bool is_refusing) {
    if (client->error == FEDMOTE_OK) {
        client->error = status;
        client->where = where;
    }
    fedmote_client_note(client, FEDMOTE_EVENT_ERROR, status);
    client->update.is_open = false;
    client->samples.is_open = false;
    if (is_refusing) {
        client->refusal = status;
        client->refusal_channel = FEDMOTE_CHANNEL_COORDINATOR;
        client->is_refusal_of_round = true;
        client->has_refusal_handle = false;
    }
    fedmote_client_go(client, FEDMOTE_STATE_IDLE);
    fedmote_client_back_off(client);
}

/* ---- work: fetching -----------------------------------------------------------------------------------------------
 */

uint32_t fedmote_client_device(const struct fedmote_client *client) {
    return fedmote_crc32(0, (const uint8_t *)client->identity.id, (uint32_t)strlen(client->identity.id));
}

static void begin_round(struct fedmote_client *client) {
    int32_t status = fedmote_store_try(&client->store);
    if (status == FEDMOTE_OK) {
        status = fedmote_round_begin(&client->round, client->round.plan.has_head, fedmote_client_device(client));
    }
    if (status != FEDMOTE_OK) {
        fedmote_client_fail(client, status, "begin", true);
        return;
    }
    fedmote_client_go(client, FEDMOTE_STATE_ENCODE);
}

/* The package is in round.package: does the arena hold what it needs? */
static int32_t check_fit(struct fedmote_client *client) {
    int32_t status = fedmote_round_layout(&client->round, client->port, client->arena, client->arena_bytes);
    const struct fedmote_plan *plan = &client->round.plan;
    if (status == FEDMOTE_OK && plan->has_head && plan->head_size != 4 * client->round.package.head_parameters) {
        return FEDMOTE_ERR_PACKAGE_HEAD;
    }
    return status;
}

/* The package is installed and fits: the head next. */
static void begin_head(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    client->fetch = FEDMOTE_FETCH_BEGIN;
    if (plan->has_head) {
        fedmote_receiver_begin(&client->receiver, plan->head_handle, plan->head_size, FEDMOTE_LIMIT_WINDOW,
                               client->now);
        client->fetch = FEDMOTE_FETCH_HEAD;
    }
}

static void erase(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    int32_t status = fedmote_store_begin(&client->store, plan->model_size);
    if (status != FEDMOTE_OK) {
        fedmote_client_fail(client, status, "erase", true);
        return;
    }
    fedmote_receiver_begin(&client->receiver, plan->model_handle, plan->model_size, FEDMOTE_LIMIT_WINDOW, client->now);
    client->fetch = FEDMOTE_FETCH_MODEL;
}

/* Whether another fetch of the same bytes would end the same way: their checksum was right. */
static bool is_lasting(int32_t status) { return status <= FEDMOTE_ERR_PACKAGE_SECTION && status >= FEDMOTE_ERR_ARENA; }

/* Everything is checked, the arena too, before the old package loses its place. */
void fedmote_client_install(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    int32_t status = fedmote_store_verify(&client->store, plan->model_size, plan->model_hash, &client->round.package);
    if (status == FEDMOTE_OK) {
        status = check_fit(client);
    }
    if (status == FEDMOTE_OK) {
        status = fedmote_store_commit(&client->store, plan->model_size, plan->serial);
    }
    if (status != FEDMOTE_OK) {
        if (client->fetch == FEDMOTE_FETCH_DIFFERENCE && client->port->patching->is_lost(client, status)) {
            return;
        }
        const bool will_last = is_lasting(status);
        if (client->fetch == FEDMOTE_FETCH_REST && !will_last) {
            client->fetch = FEDMOTE_FETCH_ERASE; /* what was there is to blame, or the flash */
            return;
        }
        if (will_last) {
            client->misfit = status;
            memcpy(client->misfit_hash, plan->model_hash, sizeof client->misfit_hash);
            client->misfit_samples = client->port->sample_count(client->port->context);
        }
        fedmote_client_fail(client, status, "install", true);
        return;
    }
    fedmote_client_note(client, FEDMOTE_EVENT_INSTALLED, (int32_t)client->store.slot);
    begin_head(client);
}

static void finish_head(struct fedmote_client *client) {
    const struct fedmote_plan *plan = &client->round.plan;
    const uint8_t *head = (const uint8_t *)fedmote_round_head_base(&client->round);
    if (fedmote_crc32(0, head, plan->head_size) != plan->head_crc) {
        fedmote_client_fail(client, FEDMOTE_ERR_CRC, "head", true);
        return;
    }
    begin_round(client);
}

/* Why the wanted package need not be fetched; FEDMOTE_OK where it is worth it. */
static int32_t find_obstacle(const struct fedmote_client *client) {
    uint32_t sample_count = client->port->sample_count(client->port->context);
    if (sample_count == 0) {
        return FEDMOTE_ERR_NO_SAMPLES;
    }
    bool is_misfit = client->misfit_samples == sample_count &&
                     memcmp(client->misfit_hash, client->round.plan.model_hash, sizeof client->misfit_hash) == 0;
    return is_misfit ? client->misfit : FEDMOTE_OK;
}

/* The update is made already; or else the wanted package is there, or comes as a difference, or whole. */
static void choose(struct fedmote_client *client) {
    if (client->port->journal && client->port->journal->find(client)) {
        return;
    }
    int32_t found = fedmote_store_find(&client->store, client->round.plan.model_hash, &client->round.package);
    int32_t status = found == FEDMOTE_OK               ? check_fit(client)
                     : found == FEDMOTE_ERR_NO_PACKAGE ? find_obstacle(client)
                                                       : found;
    if (status != FEDMOTE_OK) {
        fedmote_client_fail(client, status, found == FEDMOTE_ERR_NO_PACKAGE ? "fetch" : "package", true);
    } else if (found == FEDMOTE_OK) {
        begin_head(client);
    } else if (!(client->port->resuming && client->port->resuming->begin(client)) &&
               !(client->port->patching && client->port->patching->begin(client))) {
        erase(client);
    }
}

static bool work_fetch(struct fedmote_client *client) {
    switch (client->fetch) {
    case FEDMOTE_FETCH_CHOOSE:
        choose(client);
        return true;
    case FEDMOTE_FETCH_ERASE:
        erase(client);
        return true;
    case FEDMOTE_FETCH_DIFFERENCE:
        return client->port->patching->work(client);
    case FEDMOTE_FETCH_BEGIN:
        begin_round(client);
        return true;
    case FEDMOTE_FETCH_MODEL:
    case FEDMOTE_FETCH_REST:
        if (client->receiver.missing == 0) {
            fedmote_client_install(client);
            return true;
        }
        return false;
    default:
        if (client->receiver.missing == 0) {
            finish_head(client);
            return true;
        }
        return false;
    }
}

/* ---- work: learning -----------------------------------------------------------------------------------------------
 */

/* The round's work went on to its next phase. */
static void enter_phase(struct fedmote_client *client) {
    struct fedmote_round *round = &client->round;
    if (round->work == FEDMOTE_WORK_RANK) {
        fedmote_client_go(client, FEDMOTE_STATE_SELECT);
    } else if (round->work == FEDMOTE_WORK_TRAIN) {
        if (round->results.sent > 0 && !client->is_round_closed) {
            fedmote_offer_open(&client->samples, fedmote_samples_size(round), round->results.samples_crc, client->now);
            fedmote_client_note(client, FEDMOTE_EVENT_SAMPLES, (int32_t)round->results.sent);
        }
        fedmote_client_go(client, FEDMOTE_STATE_TRAIN);
    } else if (round->work == FEDMOTE_WORK_DONE) {
        fedmote_offer_open(&client->update, fedmote_update_size(round), round->results.update_crc, client->now);
        client->log.phase = FEDMOTE_LOG_BEGIN;
        if (fedmote_store_confirm(&client->store) != FEDMOTE_OK) { /* the next round says it again */
            fedmote_client_note(client, FEDMOTE_EVENT_ERROR, FEDMOTE_ERR_SLOT_IO);
        }
        fedmote_client_go(client, FEDMOTE_STATE_REPORT);
        if (client->is_round_closed) {
            fedmote_client_back_off(client); /* nobody may want it any more: hello as well, as at the deadline */
        }
    }
}

/* One piece of work; false where the state has none. */
static bool work(struct fedmote_client *client) {
    if (client->state == FEDMOTE_STATE_FETCH) {
        return work_fetch(client);
    }
    if (client->state == FEDMOTE_STATE_REPORT) {
        return (client->port->masking && client->port->masking->work(client)) ||
               (client->port->journal && client->port->journal->work(client));
    }
    if (client->state == FEDMOTE_STATE_IDLE) {
        return false;
    }
    int32_t status = fedmote_round_step(&client->round);
    if (status < 0) {
        fedmote_client_fail(client, status, "learning", true);
    } else if (status == FEDMOTE_OK) {
        enter_phase(client);
    }
    return true;
}

/* ---- time and link ------------------------------------------------------------------------------------------------
 */

/* The round's time is over: samples that nobody pulled are dropped, and no one is waited for. */
static void watch_deadline(struct fedmote_client *client) {
    if (!client->deadline.is_set || fedmote_until(client->deadline.at, client->now) > 0) {
        return;
    }
    client->deadline.is_set = false;
    client->is_round_closed = true;
    client->samples.is_open = false;
    if (client->state == FEDMOTE_STATE_FETCH) {
        fedmote_client_fail(client, FEDMOTE_ERR_TIMEOUT, "fetch", false);
    } else if (client->state == FEDMOTE_STATE_REPORT) {
        fedmote_client_back_off(client); /* the update is kept; hello as well, so that the next plan can come */
    }
}

static void watch_link(struct fedmote_client *client) {
    if (client->line.is_up == client->was_link_up) {
        return;
    }
    client->was_link_up = client->line.is_up;
    if (client->line.is_up) {
        client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
        fedmote_client_hello_in(client, 0);
        fedmote_client_note(client, FEDMOTE_EVENT_LINK_UP, 0);
    } else {
        fedmote_client_note(client, FEDMOTE_EVENT_LINK_DOWN, client->line.error);
    }
}

/* Hears at most one frame; false where none came and no byte moved. */
static bool listen(struct fedmote_client *client) {
    struct fedmote_frame frame;
    int32_t status = client->identity.link->poll(&client->line, client->now, &frame);
    watch_link(client);
    const struct fedmote_sealing *sealing = client->port->sealing;
    if (status == FEDMOTE_LINK_FRAME && (!sealing || sealing->open(client, &frame))) {
        fedmote_client_hear(client, &frame);
    }
    return client->line.has_moved;
}

/* ---- public -------------------------------------------------------------------------------------------------------
 */

static bool is_name(const char *text) {
    size_t length = text ? strlen(text) : 0;
    return length > 0 && length <= FEDMOTE_LIMIT_IDENTIFIER &&
           strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

static bool is_short(const char *text) { return !text || strlen(text) <= FEDMOTE_LIMIT_TEXT; }

static bool is_port_complete(const struct fedmote_port *port) {
    return port->now_ms && port->random && port->stream_read && port->stream_write && port->sample_count &&
           port->sample_read && port->slot_base && port->slot_erase && port->slot_write && port->operators &&
           port->arithmetic;
}

int32_t fedmote_init(struct fedmote *device, const struct fedmote_port *port, const struct fedmote_identity *identity,
                     uint8_t *arena, uint32_t arena_bytes) {
    if (!device || !port || !identity || !arena || !is_port_complete(port) || !identity->link ||
        !is_name(identity->id) || !is_name(identity->site) || (identity->board && !is_name(identity->board)) ||
        !is_short(identity->username) || !is_short(identity->password) || (uintptr_t)arena % ARENA_ALIGN != 0) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    if (arena_bytes < fedmote_link_bytes()) {
        return FEDMOTE_ERR_ARENA;
    }
    struct fedmote_client *client = inside(device);
    memset(device, 0, sizeof *device);
    client->port = port;
    client->identity = *identity;
    client->identity.board = identity->board ? identity->board : "generic";
    client->arena = arena;
    client->arena_bytes = arena_bytes;
    client->where = "";
    client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
    client->now = port->now_ms(port->context);
    (void)!fedmote_store_open(&client->store, port, &client->round.package); /* none is fine: it will be fetched */
    uint32_t half = fedmote_link_bytes() / 2;
    client->line.port = port;
    client->line.identity = &client->identity;
    client->line.boot = port->random(port->context);
    client->line.receive = arena;
    client->line.transmit = arena + half;
    client->line.capacity = half;
    if (port->journal) {
        port->journal->open(client);
    }
    if (client->store.reverted > 0) {
        fedmote_client_note(client, FEDMOTE_EVENT_REVERTED, client->store.reverted);
    }
    if (identity->key) { /* a device that was given a key never speaks without it */
        int32_t status = port->sealing ? port->sealing->begin(client) : FEDMOTE_ERR_ARGUMENT;
        if (status != FEDMOTE_OK) {
            return status;
        }
    }
    if ((identity->verify_key && !(port->signing && port->verify)) ||
        (identity->masking && !(port->masking && port->masking->is_ready(client)))) {
        return FEDMOTE_ERR_ARGUMENT; /* it would take what nobody signed, or say what nobody may see */
    }
    client->identity.link->open(&client->line);
    return FEDMOTE_OK;
}

int32_t fedmote_step(struct fedmote *device) {
    struct fedmote_client *client = inside(device);
    client->now = client->port->now_ms(client->port->context);
    watch_deadline(client);
    client->is_listening_first = !client->is_listening_first;
    if (client->is_listening_first && listen(client)) {
        return FEDMOTE_BUSY;
    }
    if (fedmote_client_speak(client) || work(client)) {
        return FEDMOTE_BUSY;
    }
    return !client->is_listening_first && listen(client) ? FEDMOTE_BUSY : FEDMOTE_IDLE;
}

uint32_t fedmote_wake_ms(const struct fedmote *device) {
    const struct fedmote_client *client = inside_const(device);
    uint32_t now = client->port->now_ms(client->port->context);
    if (client->line.tx_begin != client->line.tx_end) {
        return 1; /* the stream was full */
    }
    uint32_t wake = client->identity.link->wake_ms(&client->line, now);
    uint32_t speak = fedmote_client_speak_wake_ms(client, now);
    uint32_t deadline = client->deadline.is_set ? fedmote_until(client->deadline.at, now) : UINT32_MAX;
    wake = speak < wake ? speak : wake;
    return deadline < wake ? deadline : wake;
}

void fedmote_status(const struct fedmote *device, struct fedmote_info *info) {
    const struct fedmote_client *client = inside_const(device);
    *info = (struct fedmote_info){
        .state = (enum fedmote_state)client->state,
        .is_link_up = client->line.is_up,
        .is_unsigned = client->port->hash == NULL,
        .is_sealed = client->identity.key != NULL,
        .has_package = client->store.is_installed,
        .is_on_trial = client->store.is_on_trial,
        .is_update_held = client->update.is_open,
        .round = client->round.plan.round,
        .generation = client->store.generation,
        .arena_bytes = client->arena_bytes,
        .arena_required = client->round.layout.required,
        .arena_total = client->round.layout.total,
        .error = client->error,
        .where = client->where,
        .frames_received = client->line.frames_received,
        .frames_sent = client->line.frames_sent,
        .frame_errors = client->line.frame_errors,
        .rounds_done = client->rounds_done,
        .link_losses = client->line.losses,
        .messages_forged = client->seal.forged,
        .messages_replayed = client->seal.replayed,
    };
}
