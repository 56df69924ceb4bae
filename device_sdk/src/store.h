/* SPDX-License-Identifier: Apache-2.0
 *
 * Two package slots with an atomic switch (protocol/SPEC.md, section 7, "Slots"). The last 16 bytes of a slot are its
 * commit record, written after everything else: whatever moment the power fails at, the last committed package stays.
 */
#ifndef FEDMOTE_STORE_H
#define FEDMOTE_STORE_H

#include "package.h"

#define FEDMOTE_RECORD_BYTES 16U
#define FEDMOTE_FLASH_UNIT 8U /* flash is written in multiples of it */

struct fedmote_store {
    const struct fedmote_port *port;
    bool is_installed;
    uint32_t slot;       /* the installed one; where none is, the other is 0 */
    uint32_t generation; /* highest of the valid records */
};

/* Whether a unit was never written since it was erased. */
bool fedmote_is_erased(const uint8_t unit[FEDMOTE_FLASH_UNIT]);

/* Finds the newest committed package that is whole: a slot whose record is good and whose package is not (worn flash)
 * counts as empty. Returns FEDMOTE_OK or FEDMOTE_ERR_NO_PACKAGE, `package` filled or not. Verifies both slots at most.
 */
FEDMOTE_MUST_CHECK int32_t fedmote_store_open(struct fedmote_store *store, const struct fedmote_port *port,
                                              struct fedmote_package *package);

/* The installed package, NULL where there is none; its hash[32]. */
const uint8_t *fedmote_store_package(const struct fedmote_store *store);
const uint8_t *fedmote_store_hash(const struct fedmote_store *store);

/* Bytes that a slot has for a package. */
uint32_t fedmote_store_room(const struct fedmote_store *store);

/* Opens the installed package once more; one that the flash has lost meanwhile is installed no longer. Errors:
 * FEDMOTE_ERR_NO_PACKAGE, FEDMOTE_ERR_PACKAGE_*. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_reopen(struct fedmote_store *store, struct fedmote_package *package);

/* Erases the other slot for a package of `size` bytes. Errors: FEDMOTE_ERR_SLOT where it does not fit,
 * FEDMOTE_ERR_PACKAGE_SIZE where it cannot be a package, FEDMOTE_ERR_SLOT_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_begin(struct fedmote_store *store, uint32_t size);
/* Writes a chunk there; offset and size are multiples of 8, each byte comes once. Error: FEDMOTE_ERR_SLOT_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_write(struct fedmote_store *store, uint32_t offset, const uint8_t *bytes,
                                               uint32_t size);
/* Opens what was written there. Errors: FEDMOTE_ERR_PACKAGE_*; _HASH also where it is not the package `hash`. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_verify(const struct fedmote_store *store, uint32_t size,
                                                const uint8_t hash[32], struct fedmote_package *package);
/* Makes it the installed one with one write of 16 bytes, read back. Error: FEDMOTE_ERR_SLOT_IO; the old one stays. */
FEDMOTE_MUST_CHECK int32_t fedmote_store_commit(struct fedmote_store *store, uint32_t size);

#endif
