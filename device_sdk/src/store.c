/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"

#include <string.h>

#include "crc32.h"
#include "little_endian.h"

enum {
    SLOTS = 2,
    PACKAGE_ALIGN = 16,
    HEADER_BYTES = 48,
    HASH_AT = 16,
    HASH_BYTES = 32,
    RECORD_BYTES = 16,
    UNIT = FEDMOTE_FLASH_UNIT,
    CONFIRMATION = FEDMOTE_TRIALS, /* the mark behind those of the trials */
};

typedef char fedmote_slot_end_holds_marks_and_record[FEDMOTE_SLOT_END_BYTES == 4 * UNIT + RECORD_BYTES ? 1 : -1];

/* A mark; its first half begins a commit record. */
static const uint8_t mark[UNIT] = {'F', 'M', 'C', 'R', 'F', 'M', 'C', 'R'};

static const uint8_t *base(const struct fedmote_store *store, uint32_t slot) {
    return store->port->slot_base(store->port->context, slot);
}

static bool write(const struct fedmote_store *store, uint32_t slot, uint32_t offset, const uint8_t *bytes,
                  uint32_t size) {
    return store->port->slot_write(store->port->context, slot, offset, bytes, size) >= 0;
}

bool fedmote_is_erased(const uint8_t unit[FEDMOTE_FLASH_UNIT]) {
    const uint32_t half = fedmote_load_u32(unit);
    return half == fedmote_load_u32(unit + 4) && half + 1U <= 1U; /* all bits set, or none */
}

void fedmote_put_u32(uint8_t *bytes, uint32_t value) {
    for (uint32_t i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

uint32_t fedmote_store_room(const struct fedmote_store *store) {
    uint32_t slot_bytes = store->port->slot_bytes;
    return slot_bytes > FEDMOTE_SLOT_END_BYTES ? slot_bytes - FEDMOTE_SLOT_END_BYTES : 0;
}

static uint32_t record_at(const struct fedmote_store *store) { return store->port->slot_bytes - RECORD_BYTES; }

/* ---- marks --------------------------------------------------------------------------------------------------------
 */

/* A mark counts as soon as its unit is not erased, whatever a cut made of it: it can be written once. */
static bool is_marked(const struct fedmote_store *store, uint32_t slot, uint32_t number) {
    return !fedmote_is_erased(base(store, slot) + fedmote_store_room(store) + number * UNIT);
}

/* Sets a mark of the installed package. Whether it is there shows in the flash alone. */
static bool set_mark(const struct fedmote_store *store, uint32_t number) {
    (void)write(store, store->slot, fedmote_store_room(store) + number * UNIT, mark, sizeof mark);
    return is_marked(store, store->slot, number);
}

/* How many trials the package of a slot has begun; 0 where it is confirmed. */
static uint32_t count_trials(const struct fedmote_store *store, uint32_t slot) {
    uint32_t count = 0;
    while (count < FEDMOTE_TRIALS && is_marked(store, slot, count)) {
        count++;
    }
    return is_marked(store, slot, CONFIRMATION) ? 0 : count;
}

/* ---- finding ------------------------------------------------------------------------------------------------------
 */

/* The generation of a slot's record, 0 where it is not valid. */
static uint32_t generation_of(const struct fedmote_store *store, uint32_t slot) {
    const uint8_t *record = base(store, slot) + record_at(store);
    const bool is_valid = memcmp(record, mark, 4) == 0 &&
                          fedmote_crc32(0, record, 12) == fedmote_load_u32(record + 12) &&
                          fedmote_load_u32(record + 8) <= fedmote_store_room(store);
    return is_valid ? fedmote_load_u32(record + 4) : 0;
}

/* Opens the package of a slot with a valid record and makes it the installed one. False: it is not whole. */
static bool take(struct fedmote_store *store, uint32_t slot, struct fedmote_package *package) {
    if (fedmote_package_open(package, store->port, base(store, slot), fedmote_store_room(store)) != FEDMOTE_OK) {
        return false;
    }
    store->is_tried = store->is_tried && store->slot == slot;
    store->is_installed = true;
    store->is_on_trial = !is_marked(store, slot, CONFIRMATION);
    store->slot = slot;
    return true;
}

int32_t fedmote_store_open(struct fedmote_store *store, const struct fedmote_port *port,
                           struct fedmote_package *package) {
    *store = (struct fedmote_store){.port = port};
    if (fedmote_store_room(store) == 0) {
        return FEDMOTE_ERR_NO_PACKAGE;
    }
    const uint32_t newest = generation_of(store, 1) > generation_of(store, 0) ? 1 : 0;
    store->generation = generation_of(store, newest);
    for (uint32_t i = 0; i < SLOTS; i++) {
        const uint32_t slot = newest ^ i;
        const uint32_t trials = generation_of(store, slot) > 0 ? count_trials(store, slot) : 0;
        if (generation_of(store, slot) > 0 && trials == 0 && take(store, slot, package)) {
            return FEDMOTE_OK;
        }
        store->reverted = i == 0 ? (uint8_t)trials : store->reverted;
    }
    return FEDMOTE_ERR_NO_PACKAGE;
}

int32_t fedmote_store_find(struct fedmote_store *store, const uint8_t hash[32], struct fedmote_package *package) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        const uint32_t slot = store->slot ^ i;
        if (generation_of(store, slot) == 0 || memcmp(base(store, slot) + HASH_AT, hash, HASH_BYTES) != 0) {
            continue;
        }
        const bool is_running = store->is_tried && i == 0;
        if (!is_running && count_trials(store, slot) == FEDMOTE_TRIALS) {
            return FEDMOTE_ERR_PACKAGE_TRIAL;
        }
        if (take(store, slot, package)) {
            return FEDMOTE_OK;
        }
        store->is_installed = store->is_installed && i != 0;
    }
    return FEDMOTE_ERR_NO_PACKAGE;
}

bool fedmote_store_is_newest(const struct fedmote_store *store, const uint8_t hash[32]) {
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        if (store->generation > 0 && generation_of(store, slot) == store->generation) {
            return memcmp(base(store, slot) + HASH_AT, hash, HASH_BYTES) == 0;
        }
    }
    return false;
}

const uint8_t *fedmote_store_package(const struct fedmote_store *store) {
    return store->is_installed && !store->is_on_trial ? base(store, store->slot) : NULL;
}

const uint8_t *fedmote_store_hash(const struct fedmote_store *store) {
    return store->is_installed ? base(store, store->slot) + HASH_AT : NULL;
}

/* ---- trial --------------------------------------------------------------------------------------------------------
 */

int32_t fedmote_store_try(struct fedmote_store *store) {
    if (store->is_on_trial && !store->is_tried) {
        store->is_tried = set_mark(store, count_trials(store, store->slot));
        return store->is_tried ? FEDMOTE_OK : FEDMOTE_ERR_SLOT_IO;
    }
    return FEDMOTE_OK;
}

int32_t fedmote_store_confirm(struct fedmote_store *store) {
    if (store->is_on_trial) {
        store->is_on_trial = !set_mark(store, CONFIRMATION);
    }
    return store->is_on_trial ? FEDMOTE_ERR_SLOT_IO : FEDMOTE_OK;
}

/* ---- installing ---------------------------------------------------------------------------------------------------
 */

int32_t fedmote_store_begin(struct fedmote_store *store, uint32_t size) {
    if (size < HEADER_BYTES || size % PACKAGE_ALIGN != 0) {
        return FEDMOTE_ERR_PACKAGE_SIZE;
    }
    if (size > fedmote_store_room(store)) {
        return FEDMOTE_ERR_SLOT;
    }
    const struct fedmote_port *port = store->port;
    store->is_installed = store->is_installed && !store->is_on_trial; /* whose slot it is then */
    store->is_on_trial = false;
    return port->slot_erase(port->context, fedmote_store_spare(store)) < 0 ? FEDMOTE_ERR_SLOT_IO : FEDMOTE_OK;
}

int32_t fedmote_store_write(struct fedmote_store *store, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    if (size > fedmote_store_room(store) || offset > fedmote_store_room(store) - size) {
        return FEDMOTE_ERR_SLOT_IO;
    }
    return write(store, fedmote_store_spare(store), offset, bytes, size) ? FEDMOTE_OK : FEDMOTE_ERR_SLOT_IO;
}

int32_t fedmote_store_verify(const struct fedmote_store *store, uint32_t size, const uint8_t hash[32],
                             struct fedmote_package *package) {
    int32_t status = fedmote_package_open(package, store->port, base(store, fedmote_store_spare(store)), size);
    if (status != FEDMOTE_OK) {
        return status;
    }
    return memcmp(package->hash, hash, HASH_BYTES) == 0 ? FEDMOTE_OK : FEDMOTE_ERR_PACKAGE_HASH;
}

int32_t fedmote_store_commit(struct fedmote_store *store, uint32_t size, uint32_t serial) {
    const uint32_t next = store->generation + 1;
    const uint32_t generation = serial > next ? serial : next;
    uint32_t slot = fedmote_store_spare(store);
    uint8_t record[RECORD_BYTES];
    memcpy(record, mark, 4);
    fedmote_put_u32(record + 4, generation);
    fedmote_put_u32(record + 8, size);
    fedmote_put_u32(record + 12, fedmote_crc32(0, record, 12));
    if (!write(store, slot, record_at(store), record, sizeof record) ||
        memcmp(base(store, slot) + record_at(store), record, sizeof record) != 0) {
        return FEDMOTE_ERR_SLOT_IO;
    }
    store->generation = generation;
    store->slot = slot;
    store->is_installed = store->is_on_trial = true;
    store->is_tried = false;
    return FEDMOTE_OK;
}
