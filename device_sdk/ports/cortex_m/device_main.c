/* SPDX-License-Identifier: Apache-2.0
 *
 * The federated device: the whole image. Identity and samples are regions of flash outside the image, so that one image
 * serves a fleet.
 */
#include <stddef.h>

#include "chip.h"
#include "entropy.h"
#include "fedmote/fedmote.h"
#include "fedmote_board.h"
#include "journal_regions.h"
#include "monocypher_port.h"
#include "samples_region.h"
#include "slots.h"

#define SAY_AGAIN_MS 1000U

static struct fedmote device;
static struct samples_region samples;
static char identity_text[FEDMOTE_IDENTITY_TEXT_BYTES];
static uint8_t arena[FEDMOTE_BOARD_ARENA_BYTES] __attribute__((aligned(16)));

static uint32_t port_now_ms(void *context) {
    (void)context;
    return chip_now_ms();
}

static uint32_t port_random(void *context) {
    (void)context;
    return entropy_word();
}

static int32_t port_stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return chip_port.stream_read(NULL, bytes, capacity);
}

static int32_t port_stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return chip_port.stream_write(NULL, bytes, size);
}

static uint32_t port_sample_count(void *context) {
    (void)context;
    return samples.count;
}

static int32_t port_sample_read(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label) {
    (void)context;
    return samples_region_read(&samples, index, x, x_bytes, label);
}

static const struct fedmote_operator *const operators[] = {FEDMOTE_BOARD_OPERATORS, NULL};

static const struct fedmote_port port = {
    .now_ms = port_now_ms,
    .random = port_random,
    .stream_read = port_stream_read,
    .stream_write = port_stream_write,
    .sample_count = port_sample_count,
    .sample_read = port_sample_read,
    .slot_bytes = FEDMOTE_BOARD_SLOT_BYTES,
    .slot_base = slots_base,
    .slot_erase = slots_erase,
    .slot_write = slots_write,
    .hash = FEDMOTE_PORT_HASH,
    .operators = operators,
    .arithmetic = &FEDMOTE_BOARD_ARITHMETIC,
    .patching = &fedmote_difference_patching,
    .journal = &fedmote_flash_journal,
    .journal_bytes = FEDMOTE_BOARD_JOURNAL_BYTES,
    .journal_base = journal_base,
    .journal_erase = journal_erase,
    .journal_write = journal_write,
    .sealing = &fedmote_message_sealing,
    .crypto = FEDMOTE_PORT_CRYPTO,
    .signing = FEDMOTE_PORT_SIGNING,
    .verify = FEDMOTE_PORT_VERIFY,
    .masking = FEDMOTE_PORT_MASKING,
    .agree = FEDMOTE_PORT_AGREE,
};

/* Waits until the line has taken it all. */
static void say(const char *message) {
    for (; *message != '\0'; message++) {
        const uint8_t byte = (uint8_t)*message;
        while (chip_port.stream_write(NULL, &byte, 1U) == 0) {
        }
    }
}

/* A status as decimal digits; its name is in fedmote_schema.h. */
static void say_status(int32_t status) {
    char text[12] = "";
    char *digit = text + sizeof text - 1;
    uint32_t rest = (uint32_t)-status;
    do {
        *--digit = (char)('0' + (char)(rest % 10U));
        rest /= 10U;
    } while (rest > 0U);
    say("status -");
    say(digit);
}

/* A board that cannot start says why, in words, once a second: there is a person at the other end of the line now. */
__attribute__((noreturn)) static void refuse_to_start(const char *what, int32_t status) {
    for (;;) {
        say("fedmote: ");
        say(what);
        say(": ");
        say_status(status);
        say("\r\n");
        const uint32_t said = chip_now_ms();
        while (chip_now_ms() - said < SAY_AGAIN_MS) {
            chip_sleep();
        }
    }
}

/* The salt of the entropy: the identity's own checksum differs from board to board. */
static uint32_t identity_salt(const uint8_t *region) {
    return (uint32_t)region[8] | (uint32_t)region[9] << 8 | (uint32_t)region[10] << 16 | (uint32_t)region[11] << 24;
}

int main(void) {
    const uint8_t *identity_region = (const uint8_t *)FEDMOTE_BOARD_REGIONS_IDENTITY_ADDRESS;
    struct fedmote_identity identity;

    chip_start();
    slots_start();
    int32_t status =
        fedmote_identity_read(&identity, identity_text, identity_region, FEDMOTE_BOARD_REGIONS_IDENTITY_BYTES);
    if (status != FEDMOTE_OK) {
        refuse_to_start("no identity in flash", status);
    }
    identity.board = FEDMOTE_BOARD_NAME;
    entropy_start(identity_salt(identity_region));
    status = samples_region_open(&samples, (const uint8_t *)FEDMOTE_BOARD_REGIONS_SAMPLES_ADDRESS,
                                 FEDMOTE_BOARD_REGIONS_SAMPLES_BYTES, FEDMOTE_BOARD_MAX_SAMPLES);
    if (status != FEDMOTE_OK) {
        refuse_to_start("no samples in flash", status);
    }
    status = fedmote_init(&device, &port, &identity, arena, sizeof arena);
    if (status != FEDMOTE_OK) {
        refuse_to_start("fedmote_init", status);
    }
    for (;;) {
        if (fedmote_step(&device) == FEDMOTE_IDLE) {
            chip_sleep(); /* the tick wakes it at the latest */
        }
    }
}
