/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of struct fedmote: the step machine of protocol/SPEC.md, section 5.
 */
#ifndef FEDMOTE_CLIENT_H
#define FEDMOTE_CLIENT_H

#include "journal.h"
#include "link.h"
#include "masks.h"
#include "patch.h"
#include "resume.h"
#include "round.h"
#include "seal.h"
#include "signature.h"
#include "store.h"

/* What FEDMOTE_STATE_FETCH is doing, and, of masks.c, FEDMOTE_STATE_REPORT. */
enum fedmote_fetch {
    FEDMOTE_FETCH_CHOOSE, /* what to fetch */
    FEDMOTE_FETCH_ERASE,  /* for the whole package, after a difference, or a beginning, that was of no use */
    FEDMOTE_FETCH_BEGIN,
    FEDMOTE_FETCH_MODEL, /* from here on chunks are asked for */
    FEDMOTE_FETCH_REST,  /* of a package that was begun before */
    FEDMOTE_FETCH_DIFFERENCE,
    FEDMOTE_FETCH_HEAD,
    FEDMOTE_FETCH_PEERS
};

/* First and last back-off of hello, milliseconds. */
enum { FEDMOTE_HELLO_MIN_MS = 1000, FEDMOTE_HELLO_MAX_MS = 60000 };

/* A point in time that may be absent. */
struct fedmote_timer {
    bool is_set;
    uint32_t at;
};

struct fedmote_client {
    const struct fedmote_port *port;
    struct fedmote_identity identity;
    uint8_t *arena;
    uint32_t arena_bytes;
    uint32_t now; /* of the current step */
    uint8_t state, fetch;
    bool is_listening_first; /* alternates, so that a flood of frames cannot stop the work, nor work the frames */
    bool was_link_up;
    bool has_plan;          /* since init; round.plan is valid */
    bool is_round_finished; /* acknowledged or refused: the same round begins again only with a higher attempt */
    bool is_round_closed;   /* its time is over */

    struct fedmote_line line;
    struct fedmote_seal seal;
    struct fedmote_store store;
    struct fedmote_receiver receiver;
    struct fedmote_round round;
    struct fedmote_log log;       /* of the port's journal */
    struct fedmote_offer update;  /* coordinator channel */
    struct fedmote_offer samples; /* cell channel */
    struct fedmote_masks masks;

    /* The message at hand, composed in the transmit buffer; size 0: none after all. */
    uint32_t said_size;
    uint8_t said_channel, said_kind;

    struct fedmote_timer hello, deadline;
    uint32_t backoff_ms;

    /* The package that was fetched whole last and cannot be used here: its operators, bounds or head, or the arena.
     * Without this, a coordinator that insists on it would have a slot erased and written at every hello, and wear the
     * flash out. */
    int32_t misfit; /* why; FEDMOTE_OK: there is none */
    uint8_t misfit_hash[32];
    uint32_t misfit_samples; /* the number of samples that it did not fit with */

    /* A refusal on its way out; the first one waits, later ones are dropped: the peer asks again. */
    int32_t refusal; /* FEDMOTE_OK: none */
    uint8_t refusal_channel;
    bool is_refusal_of_round, has_refusal_handle;
    uint32_t refusal_handle;

    int32_t error;
    const char *where;
    uint32_t rounds_done;
};

/* client.c: what the other parts of the machine do to it. */
void fedmote_client_go(struct fedmote_client *client, enum fedmote_state state);
/* Ends the round without an update and goes back to IDLE; says no to the coordinator where `is_refusing`. */
void fedmote_client_fail(struct fedmote_client *client, int32_t status, const char *where, bool is_refusing);
void fedmote_client_note(struct fedmote_client *client, enum fedmote_event event, int32_t value);
void fedmote_client_hello_in(struct fedmote_client *client, uint32_t delay_ms);
/* Says hello after the next, doubled, back-off. */
void fedmote_client_back_off(struct fedmote_client *client);

/* The device in the draws: the checksum of its id. */
uint32_t fedmote_client_device(const struct fedmote_client *client);

/* Makes the package in the other slot the installed one, or fails. */
void fedmote_client_install(struct fedmote_client *client);

/* hear.c: whether a message names the run of the newest plan. */
bool fedmote_client_is_current_run(const struct fedmote_client *client, const struct fedmote_message *message);
/* hear.c: takes one frame. */
void fedmote_client_hear(struct fedmote_client *client, const struct fedmote_frame *frame);
/* speak.c: sends at most one message; false where there is none to send now. */
bool fedmote_client_speak(struct fedmote_client *client);
/* Milliseconds until speak() has something to send; UINT32_MAX: never by itself. */
uint32_t fedmote_client_speak_wake_ms(const struct fedmote_client *client, uint32_t now);

#endif
