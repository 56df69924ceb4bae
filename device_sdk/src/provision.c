/* SPDX-License-Identifier: Apache-2.0
 *
 * The board says hello without a name once a second. The other end sends the first chunk of an identity region; the
 * board asks for the rest, checks the whole, writes it to a region that is erased, reads it back and acknowledges. The
 * line is the serial link of the device; everything lives in the arena, which nobody else uses yet.
 */
#include "fedmote/fedmote_provision.h"

#include <string.h>

#include "arena.h"
#include "link.h"
#include "little_endian.h"
#include "store.h"
#include "transfer.h"
#include "wipe.h"
#include "wire.h"

enum {
    HEADER = 12, /* of a region: magic, size, checksum */
    MOST = FEDMOTE_IDENTITY_REGION_BYTES,
    ALIGN = 16,
    SAY_AGAIN_MS = 1000,
    CHUNK = FEDMOTE_CHUNK_MAX,
};

/* The longest map has 318 bytes. */
typedef char fedmote_longest_identity_fits[MOST >= HEADER + 318 ? 1 : -1];

enum answer { NOTHING, REFUSAL, ACKNOWLEDGEMENT };

/* At the start of the arena; behind it the buffers of the link. */
struct provision {
    const struct fedmote_provisioning *about;
    struct fedmote_line line;
    struct fedmote_identity identity;
    char text[FEDMOTE_IDENTITY_TEXT_BYTES];
    uint8_t region[MOST]; /* as far as it came */
    uint32_t have, handle;
    uint32_t say_at;
    uint32_t refusal;
    uint8_t answer; /* that is to be said */
    bool is_done;   /* the identity is there, and the acknowledgement on its way */
};

#define PROVISION_BYTES ((sizeof(struct provision) + ALIGN - 1U) / ALIGN * ALIGN)

typedef char fedmote_provision_fits
    [PROVISION_BYTES + 2U * (FEDMOTE_BODY_MAX + 128U + ALIGN - 1U) <= FEDMOTE_PROVISION_BYTES ? 1 : -1];

static struct provision *inside(uint8_t *arena) { return (struct provision *)(void *)arena; }

int32_t fedmote_provision_begin(const struct fedmote_provisioning *provisioning, uint8_t *arena, uint32_t arena_bytes) {
    if (!provisioning || !arena || (uintptr_t)arena % ALIGN != 0 || !provisioning->port || !provisioning->board ||
        !provisioning->region || !provisioning->write || !provisioning->port->now_ms || !provisioning->port->random ||
        !provisioning->port->stream_read || !provisioning->port->stream_write) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    if (arena_bytes < PROVISION_BYTES + fedmote_link_bytes()) {
        return FEDMOTE_ERR_ARENA;
    }
    const struct fedmote_port *port = provisioning->port;
    const uint32_t half = fedmote_link_bytes() / 2U;
    struct provision *provision = inside(arena);
    memset(provision, 0, sizeof *provision);
    provision->about = provisioning;
    provision->line = (struct fedmote_line){
        .port = port,
        .identity = &provision->identity,
        .boot = port->random(port->context),
        .receive = arena + PROVISION_BYTES,
        .transmit = arena + PROVISION_BYTES + half,
        .capacity = half,
    };
    provision->say_at = port->now_ms(port->context);
    fedmote_serial_link.open(&provision->line);
    return FEDMOTE_OK;
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */

static bool is_region_erased(const struct fedmote_provisioning *about, uint32_t bytes) {
    bool is_erased = true;
    for (uint32_t at = 0; at < bytes && is_erased; at += FEDMOTE_FLASH_UNIT) {
        is_erased = fedmote_is_erased(about->region + at);
    }
    return is_erased;
}

/* Everything has come: checks it and writes it. What is written is never written over: whoever wants another identity
 * erases the region first, with a tool that has the part in its hand. */
static int32_t finish(struct provision *provision) {
    const struct fedmote_provisioning *about = provision->about;
    const uint32_t bytes = (provision->have + FEDMOTE_FLASH_UNIT - 1U) / FEDMOTE_FLASH_UNIT * FEDMOTE_FLASH_UNIT;
    const int32_t status =
        fedmote_identity_read(&provision->identity, provision->text, provision->region, provision->have);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (bytes > about->region_bytes) {
        return FEDMOTE_ERR_SLOT;
    }
    if (!is_region_erased(about, bytes)) {
        return FEDMOTE_ERR_STATE;
    }
    if (about->write(about->port->context, 0, provision->region, bytes) < 0 ||
        memcmp(about->region, provision->region, bytes) != 0) {
        return FEDMOTE_ERR_SLOT_IO;
    }
    return FEDMOTE_OK;
}

/* ---- hearing ------------------------------------------------------------------------------------------------------
 */

static void refuse(struct provision *provision, int32_t status) {
    provision->answer = REFUSAL;
    provision->refusal = (uint32_t)-status;
    provision->have = 0;
}

/* The next bytes of the region are there: is it one, and is it whole? */
static void examine(struct provision *provision) {
    if (provision->have < HEADER) {
        return;
    }
    const uint32_t size = fedmote_load_u32(provision->region + 4);
    if (size > MOST - HEADER) {
        refuse(provision, FEDMOTE_ERR_MALFORMED);
    } else if (provision->have >= HEADER + size) {
        const int32_t status = finish(provision);
        if (status == FEDMOTE_OK) {
            provision->answer = ACKNOWLEDGEMENT;
        } else {
            refuse(provision, status);
        }
    }
}

static void hear_data(struct provision *provision, const struct fedmote_message *data) {
    const uint32_t *number = data->number;
    const uint32_t size = number[FEDMOTE_FIELD_DATA];
    if (number[FEDMOTE_FIELD_OFFSET] == 0U &&
        (provision->have == 0U || number[FEDMOTE_FIELD_HANDLE] != provision->handle)) {
        memset(provision->region, 0xFF, sizeof provision->region); /* what fills the last unit of the flash */
        provision->have = 0;
        provision->handle = number[FEDMOTE_FIELD_HANDLE];
    }
    if (number[FEDMOTE_FIELD_HANDLE] != provision->handle || number[FEDMOTE_FIELD_OFFSET] != provision->have ||
        size == 0U || size > MOST - provision->have) {
        return; /* what is missing is asked for again */
    }
    memcpy(provision->region + provision->have, data->bytes[FEDMOTE_FIELD_DATA], size);
    provision->have += size;
    provision->say_at = provision->about->port->now_ms(provision->about->port->context);
    examine(provision);
}

static void hear(struct provision *provision, const struct fedmote_frame *frame) {
    struct fedmote_message message;
    if (provision->answer == NOTHING && !provision->is_done && frame->channel == FEDMOTE_CHANNEL_COORDINATOR &&
        frame->kind == FEDMOTE_KIND_DATA &&
        fedmote_decode(&message, frame->kind, frame->body, frame->size) == FEDMOTE_OK) {
        hear_data(provision, &message);
    }
}

/* ---- saying -------------------------------------------------------------------------------------------------------
 */

static void put_hello(const struct provision *provision, struct fedmote_message *message) {
    static const char nobody[] = "unprovisioned";
    const char *board = provision->about->board;
    fedmote_message_begin(message, FEDMOTE_KIND_HELLO);
    fedmote_message_string(message, FEDMOTE_FIELD_DEVICE, nobody, sizeof nobody - 1U);
    fedmote_message_string(message, FEDMOTE_FIELD_BOARD, board, (uint32_t)strlen(board));
    fedmote_message_string(message, FEDMOTE_FIELD_SDK, FEDMOTE_VERSION, sizeof FEDMOTE_VERSION - 1U);
    fedmote_message_number(message, FEDMOTE_FIELD_ROLE, FEDMOTE_ROLE_DEVICE);
    fedmote_message_number(message, FEDMOTE_FIELD_BOOT, provision->line.boot);
    fedmote_message_number(message, FEDMOTE_FIELD_PROTOCOL, FEDMOTE_LIMIT_PROTOCOL);
    fedmote_message_number(message, FEDMOTE_FIELD_MAX_BODY, FEDMOTE_BODY_MAX);
}

static void put_answer(struct provision *provision, struct fedmote_message *message) {
    static const uint8_t no_run[8] = {0};
    if (provision->answer == REFUSAL) {
        fedmote_message_begin(message, FEDMOTE_KIND_REFUSE);
        fedmote_message_number(message, FEDMOTE_FIELD_STATUS, provision->refusal);
    } else if (provision->answer == ACKNOWLEDGEMENT) {
        fedmote_message_begin(message, FEDMOTE_KIND_ACK);
        fedmote_message_string(message, FEDMOTE_FIELD_RUN, no_run, sizeof no_run);
        fedmote_message_number(message, FEDMOTE_FIELD_ROUND, 0);
        provision->is_done = true;
    } else {
        fedmote_message_begin(message, FEDMOTE_KIND_GET);
        fedmote_message_number(message, FEDMOTE_FIELD_OFFSET, provision->have);
        fedmote_message_number(message, FEDMOTE_FIELD_CHUNK, CHUNK);
        fedmote_message_number(message, FEDMOTE_FIELD_MASK, 1);
    }
    fedmote_message_number(message, FEDMOTE_FIELD_HANDLE, provision->handle);
    provision->answer = NOTHING;
}

static bool speak(struct provision *provision, uint32_t now) {
    struct fedmote_line *line = &provision->line;
    struct fedmote_message message;
    if (!fedmote_line_is_free(line) || provision->is_done ||
        (provision->answer == NOTHING && fedmote_until(provision->say_at, now) > 0)) {
        return false;
    }
    if (provision->answer == NOTHING && provision->have == 0U) {
        put_hello(provision, &message);
    } else {
        put_answer(provision, &message);
    }
    provision->say_at = now + SAY_AGAIN_MS;
    const int32_t size = fedmote_encode(&message, line->transmit + FEDMOTE_BODY_OFFSET, FEDMOTE_BODY_MAX);
    if (size > 0) {
        fedmote_serial_link.send(line, FEDMOTE_CHANNEL_COORDINATOR, message.kind, (uint32_t)size);
    }
    return true;
}

int32_t fedmote_provision_step(uint8_t *arena) {
    struct provision *provision = inside(arena);
    const struct fedmote_port *port = provision->about->port;
    const uint32_t now = port->now_ms(port->context);
    struct fedmote_frame frame;
    const int32_t status = fedmote_serial_link.poll(&provision->line, now, &frame);
    if (status == FEDMOTE_LINK_FRAME) {
        hear(provision, &frame);
    }
    if (provision->is_done && fedmote_line_is_free(&provision->line)) {
        fedmote_wipe(arena, (uint32_t)PROVISION_BYTES + fedmote_link_bytes());
        return FEDMOTE_OK;
    }
    return speak(provision, now) || status == FEDMOTE_LINK_FRAME || provision->line.has_moved ? FEDMOTE_BUSY
                                                                                              : FEDMOTE_IDLE;
}
