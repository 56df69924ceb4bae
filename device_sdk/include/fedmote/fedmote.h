/* SPDX-License-Identifier: Apache-2.0
 *
 * fedmote: federated learning for microcontrollers, the whole API of the device.
 *
 * The caller owns all memory: one `struct fedmote`, one arena, one port. Nothing is allocated, nothing blocks, nothing
 * is printed, and there is no state outside the struct. Typical use:
 *
 *     static struct fedmote device;
 *     static uint8_t arena[49152] __attribute__((aligned(16)));
 *
 *     struct fedmote_identity identity = {.id = "board-1", .site = "lab", .link = &fedmote_serial_link};
 *     if (fedmote_init(&device, &port, &identity, arena, sizeof arena) != FEDMOTE_OK) { ... }
 *     for (;;) {
 *         if (fedmote_step(&device) == FEDMOTE_IDLE) { sleep until the UART or a timer wakes }
 *     }
 *
 * How large: `fedmote convert` says what arena and slot a package needs on a board, fedmote_status() what the last one
 * needed here. fedmote_step() takes less than 900 bytes of stack on a Cortex-M4 (gcc, -Os) beside the port's callbacks
 * and the kernels, of which the deepest take 2,600 bytes there (5,400 on a Cortex-M55, 1,000 on a Cortex-M0).
 *
 * Statuses: 0 is success, negative values are errors (enum fedmote_status of fedmote_schema.h), positive values are
 * results. A status must not be ignored.
 */
#ifndef FEDMOTE_H
#define FEDMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "fedmote/fedmote_config.h"
#include "fedmote/fedmote_port.h"
#include "fedmote/fedmote_schema.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FEDMOTE_MUST_CHECK __attribute__((warn_unused_result))
#else
#define FEDMOTE_MUST_CHECK
#endif

#define FEDMOTE_VERSION "0.1.0"
#define FEDMOTE_IDLE 1 /* fedmote_step(): nothing to do until bytes arrive or wake_ms has passed */
#define FEDMOTE_BUSY 2 /* there is more to do: call again */

/* How the device reaches coordinator and partner. Name one of them in the identity; the other one is not linked. */
struct fedmote_link;
extern const struct fedmote_link fedmote_serial_link; /* frames over UART, pty, TCP (src/serial.c) */
extern const struct fedmote_link fedmote_mqtt_link;   /* MQTT 3.1.1 over any byte stream (src/mqtt.c) */

/* Who this device is. The struct is copied by fedmote_init(); its texts are borrowed and must outlive the device. */
struct fedmote_identity {
    const char *id;                  /* 1 to 32 of [a-z0-9-]; names the participant */
    const char *site;                /* 1 to 32 of [a-z0-9-]; second topic level; serial links ignore it */
    const char *board;               /* 1 to 32 of [a-z0-9-]; NULL: "generic" */
    const struct fedmote_link *link; /* never NULL */
    const char *username;            /* MQTT, at most 64 bytes; NULL: the id */
    const char *password;            /* MQTT, at most 64 bytes; NULL: none is sent */
    uint16_t keep_alive_s;           /* MQTT; 0: 30 s. A silent broker is noticed within this time */
    uint8_t is_sending_samples; /* firmware policy: may selected samples leave for the partner? 0 wins over any plan */
    const uint8_t *key;         /* 32 bytes shared with the coordinator, borrowed; NULL: messages are not sealed */
    const uint8_t *cell_key;    /* 32 bytes shared with the partner, borrowed; NULL beside a key: no samples leave */
    const uint8_t
        *verify_key;        /* 32 bytes, public, borrowed: only packages signed by its owner are fetched; NULL: all */
    const uint8_t *masking; /* identity key 11 of protocol/SPEC.md, borrowed: the group in whose sums updates leave,
                               under masks and no other way; NULL: it is in none */
};

/* Bytes that fedmote_identity_read() needs for the texts: id, site, user name, password, each with its zero. */
#define FEDMOTE_IDENTITY_TEXT_BYTES 196

enum fedmote_state {
    FEDMOTE_STATE_IDLE,   /* says hello, waits for a plan */
    FEDMOTE_STATE_FETCH,  /* pulls package and head */
    FEDMOTE_STATE_ENCODE, /* every sample: embedding, loss, norm */
    FEDMOTE_STATE_SELECT, /* ranks and groups; offers samples to the partner */
    FEDMOTE_STATE_TRAIN,  /* SGD on the own group */
    FEDMOTE_STATE_REPORT, /* offers the update, answers get */
};

/* What the port's event callback is told; the meaning of its `value` stands beside each. */
enum fedmote_event {
    FEDMOTE_EVENT_LINK_UP = 1, /* 0 */
    FEDMOTE_EVENT_LINK_DOWN,   /* status */
    FEDMOTE_EVENT_STATE,       /* the new enum fedmote_state */
    FEDMOTE_EVENT_PLAN,        /* round */
    FEDMOTE_EVENT_INSTALLED,   /* slot */
    FEDMOTE_EVENT_SAMPLES,     /* number of samples offered to the partner */
    FEDMOTE_EVENT_ACK,         /* round: the update is durable at the coordinator and was dropped here */
    FEDMOTE_EVENT_REFUSED,     /* status, negative: the peer said no */
    FEDMOTE_EVENT_ERROR,       /* status, negative; fedmote_status() says where */
    FEDMOTE_EVENT_CACHE_LOST,  /* status, negative: the cache region failed; what it does not hold is encoded again */
    FEDMOTE_EVENT_DIFFERENCE_LOST, /* status, negative: it makes no package here; the whole one is fetched */
    FEDMOTE_EVENT_REVERTED,     /* trials so far: a package on trial gave way to the one before it, at fedmote_init() */
    FEDMOTE_EVENT_JOURNAL_LOST, /* status, negative: this boot, this update or this key is not in the journal */
    FEDMOTE_EVENT_REKEYED,      /* 0: a key of the coordinator is in the journal, and used from now on */
    FEDMOTE_EVENT_RESUMED,      /* offset: from there on the rest of a package is fetched, which was begun before */
};

/* A picture of the device, filled by fedmote_status(). */
struct fedmote_info {
    enum fedmote_state state;
    uint8_t is_link_up;
    uint8_t is_unsigned; /* the port has no hash: packages are checked by CRC-32 only */
    uint8_t is_sealed;   /* the identity has a key: only messages that prove it are heard */
    uint8_t has_package; /* a slot holds a valid package */
    uint8_t is_on_trial; /* no whole round was done with it yet: a reset while it learns brings back the one before */
    uint8_t is_update_held;  /* trained and not yet acknowledged */
    uint32_t round;          /* of the last plan */
    uint32_t generation;     /* of the newest package: counts installations */
    uint32_t arena_bytes;    /* given by the caller */
    uint32_t arena_required; /* least that the package of the last plan needs; 0 before the first plan */
    uint32_t arena_total;    /* what it would use with every embedding cached */
    int32_t error;           /* first error since the last plan, FEDMOTE_OK where there is none */
    const char *where;       /* what was being done when it came: "fetch", "store", ...; "" where there is none */
    uint32_t frames_received, frames_sent;
    uint32_t frame_errors; /* frames or packets dropped since fedmote_init() */
    uint32_t rounds_done;  /* acknowledged updates since fedmote_init() */
    uint32_t link_losses;
    uint32_t messages_forged;   /* refused since fedmote_init(): not sealed with our key */
    uint32_t messages_replayed; /* refused since fedmote_init(): heard before, or too old */
};

/* The device. Treat the inside as unknown: its size is a promise, its content is not (src/client.h has it). */
struct fedmote {
    union {
        void *pointer;
        uint64_t word;
        uint8_t bytes[896 + 42 * sizeof(void *)];
    } inside;
};

/* Prepares `device`: keeps `port` and `arena` (borrowed until the device is no longer stepped), copies `identity`,
 * finds the installed package. Also restarts a device that was stepped before; nothing is sent yet. Bound: verifies the
 * packages of both slots once (CRC-32 and, where the port has one, the hash over all their bytes), reads the journal's
 * regions and writes to them, where the port has some, with two erases at most. Errors:
 * FEDMOTE_ERR_ARGUMENT for a missing callback, a text outside its bounds or an arena that is not 16-aligned;
 * FEDMOTE_ERR_ARENA for an arena below fedmote_link_bytes() of src/arena.h. No package is no error: it will be fetched.
 */
FEDMOTE_MUST_CHECK int32_t fedmote_init(struct fedmote *device, const struct fedmote_port *port,
                                        const struct fedmote_identity *identity, uint8_t *arena, uint32_t arena_bytes);

/* Does one bounded piece of work: one frame in, one frame out, one flash operation, one page of a difference or at most
 * FEDMOTE_MACS_PER_STEP multiply-accumulates. Call it for ever. Returns FEDMOTE_BUSY or FEDMOTE_IDLE, and never an
 * error: the device goes on by itself from all of them, and fedmote_status() tells. Some pieces exceed the bound, each
 * at most once per round: ranking (2 n log2 n comparisons; equal losses add up to n^2 / 2 reads of a bit), verifying a
 * package or an update of the journal (one pass over it) or the signature of a plan, and one sample through a head of
 * more than FEDMOTE_MACS_PER_STEP / 2 parameters. So do the port's agree(), one in a step and at most 25 in a masked
 * round, and the pass over the words when the last mask is on. */
int32_t fedmote_step(struct fedmote *device);

/* After FEDMOTE_IDLE: milliseconds until the next timer of the device; UINT32_MAX where only bytes can wake it. */
uint32_t fedmote_wake_ms(const struct fedmote *device);

/* Fills `info`; may be called at any time between steps. */
void fedmote_status(const struct fedmote *device, struct fedmote_info *info);

/* Reads an identity region (protocol/SPEC.md, section 8) of at most `region_bytes` at `region`. Texts are copied to
 * `text`, with a zero each; `identity` points there, and to the keys that are in the region. `board` is left
 * NULL. Names both links, so both get linked. Errors: FEDMOTE_ERR_MALFORMED without the magic, FEDMOTE_ERR_TRUNCATED,
 * FEDMOTE_ERR_CRC, and those of section 1. */
FEDMOTE_MUST_CHECK int32_t fedmote_identity_read(struct fedmote_identity *identity,
                                                 char text[FEDMOTE_IDENTITY_TEXT_BYTES], const uint8_t *region,
                                                 uint32_t region_bytes);

#ifdef __cplusplus
}
#endif

#endif
