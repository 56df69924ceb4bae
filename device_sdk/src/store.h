/* SPDX-License-Identifier: Apache-2.0
 *
 * Two package slots with an atomic switch (protocol/SPEC.md, section 7, "Slots"). The last 16 bytes of a slot are its
 * commit record, written after everything else: whatever moment the power fails at, the last committed package stays.
 *
 * A new package is on trial until a device got through a whole round with it. In front of the record there is a mark
 * for each trial, set before the encoder first runs in a boot, and one that confirms. A package that was running
 * unconfirmed when the device was reset gives way to the other one at the next start; so that a power cut does not
 * condemn it, it is tried again when it is asked for again, FEDMOTE_TRIALS times in all.
 */
#ifndef FEDMOTE_STORE_H
#define FEDMOTE_STORE_H

#include "package.h"

#define FEDMOTE_SLOT_END_BYTES 48U /* marks and commit record: what a slot does not have for its package */
#define FEDMOTE_TRIALS 3U
#define FEDMOTE_FLASH_UNIT 8U /* flash is written in multiples of it */

struct fedmote_store {
    const struct fedmote_port *port;
    bool is_installed;
    bool is_on_trial;    /* the installed one; it never gets a successor beside it, but makes room for one */
    bool is_tried;       /* its trial of this boot is marked */
    uint8_t reverted;    /* trials that the newest package has begun, if it gave way at the start; else 0 */
    uint32_t slot;       /* the installed one; where none is, the one that the next package goes to */
    uint32_t generation; /* highest of the valid records */
};

/* Whether a unit was never written since it was erased. */
bool fedmote_is_erased(const uint8_t unit[FEDMOTE_FLASH_UNIT]);
/* Little endian, as records have their numbers. */
void fedmote_put_u32(uint8_t *bytes, uint32_t value);

/* Finds the newest committed package that is whole and was not running unconfirmed at the reset. A slot whose record is
 * good and whose package is not (worn flash) counts as empty. Returns FEDMOTE_OK or FEDMOTE_ERR_NO_PACKAGE, `package`
 * filled or not. Verifies both slots at most. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_open(struct fedmote_store *store, const struct fedmote_port *port,
                                              struct fedmote_package *package);

/* Opens the package `hash`, in either slot, and makes it the installed one; one that the flash has lost meanwhile is
 * installed no longer. Errors: FEDMOTE_ERR_NO_PACKAGE, it is to be fetched; FEDMOTE_ERR_PACKAGE_TRIAL, its trials are
 * used up, and fetching it would not help. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_find(struct fedmote_store *store, const uint8_t hash[32],
                                              struct fedmote_package *package);

/* Whether `hash` is the package that was committed last, also where it gave way to the one before. */
bool fedmote_store_is_newest(const struct fedmote_store *store, const uint8_t hash[32]);

/* The installed package as the base of its successor; NULL where there is none, or where it is on trial: its successor
 * takes its place. */
const uint8_t *fedmote_store_package(const struct fedmote_store *store);
/* hash[32] of the installed package, NULL where there is none. */
const uint8_t *fedmote_store_hash(const struct fedmote_store *store);

/* The slot that the next package goes to: never the one that holds the last confirmed one. */
static inline uint32_t fedmote_store_spare(const struct fedmote_store *store) {
    return store->is_installed && !store->is_on_trial ? 1 - store->slot : store->slot;
}

/* Bytes that a slot has for a package. */
uint32_t fedmote_store_room(const struct fedmote_store *store);

/* Before the installed package is run: marks a trial, where it is on trial, once per boot. Error: FEDMOTE_ERR_SLOT_IO.
 */
FEDMOTE_MUST_CHECK int32_t fedmote_store_try(struct fedmote_store *store);
/* After a whole round with it: it is on trial no longer. Error: FEDMOTE_ERR_SLOT_IO; it still is. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_confirm(struct fedmote_store *store);

/* Erases a slot for a package of `size` bytes: the other one, or, where the installed package is on trial, its own.
 * Errors: FEDMOTE_ERR_SLOT where it does not fit, FEDMOTE_ERR_PACKAGE_SIZE where it cannot be a package,
 * FEDMOTE_ERR_SLOT_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_begin(struct fedmote_store *store, uint32_t size);
/* Writes a chunk there; offset and size are multiples of 8, each byte comes once. Error: FEDMOTE_ERR_SLOT_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_write(struct fedmote_store *store, uint32_t offset, const uint8_t *bytes,
                                               uint32_t size);
/* Opens what was written there. Errors: FEDMOTE_ERR_PACKAGE_*; _HASH also where it is not the package `hash`. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_verify(const struct fedmote_store *store, uint32_t size,
                                                const uint8_t hash[32], struct fedmote_package *package);
/* Makes it the installed one, on trial, with one write of 16 bytes, read back; its generation is `serial`, or the next
 * one where that is higher. Error: FEDMOTE_ERR_SLOT_IO; the old one stays. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_commit(struct fedmote_store *store, uint32_t size, uint32_t serial);

#endif
