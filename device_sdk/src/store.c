/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"

#include <string.h>

#include "crc32.h"
#include "little_endian.h"

enum { SLOTS = 2, PACKAGE_ALIGN = 16, HEADER_BYTES = 48, HASH_AT = 16, HASH_BYTES = 32 };

static const uint8_t record_magic[4] = {'F', 'M', 'C', 'R'};

static const uint8_t *base(const struct fedmote_store *store, uint32_t slot) {
    return store->port->slot_base(store->port->context, slot);
}

static uint32_t spare(const struct fedmote_store *store) { return store->is_installed ? 1 - store->slot : 0; }

bool fedmote_is_erased(const uint8_t unit[FEDMOTE_FLASH_UNIT]) {
    uint8_t all = 0xFF;
    uint8_t any = 0;
    for (uint32_t i = 0; i < FEDMOTE_FLASH_UNIT; i++) {
        all &= unit[i];
        any |= unit[i];
    }
    return all == 0xFF || any == 0;
}

uint32_t fedmote_store_room(const struct fedmote_store *store) {
    uint32_t slot_bytes = store->port->slot_bytes;
    return slot_bytes > FEDMOTE_RECORD_BYTES ? slot_bytes - FEDMOTE_RECORD_BYTES : 0;
}

/* Reads a slot's record; false where it is not valid. */
static bool read_record(const struct fedmote_store *store, uint32_t slot, uint32_t *generation, uint32_t *size) {
    const uint8_t *record = base(store, slot) + fedmote_store_room(store);
    if (memcmp(record, record_magic, sizeof record_magic) != 0 ||
        fedmote_crc32(0, record, 12) != fedmote_load_u32(record + 12)) {
        return false;
    }
    *generation = fedmote_load_u32(record + 4);
    *size = fedmote_load_u32(record + 8);
    return *size <= fedmote_store_room(store);
}

int32_t fedmote_store_open(struct fedmote_store *store, const struct fedmote_port *port,
                           struct fedmote_package *package) {
    *store = (struct fedmote_store){.port = port};
    if (fedmote_store_room(store) == 0) {
        return FEDMOTE_ERR_NO_PACKAGE;
    }
    uint32_t generation[SLOTS] = {0};
    uint32_t size[SLOTS] = {0};
    bool is_valid[SLOTS];
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        is_valid[slot] = read_record(store, slot, &generation[slot], &size[slot]);
        if (is_valid[slot] && generation[slot] > store->generation) {
            store->generation = generation[slot];
        }
    }
    uint32_t newest = is_valid[1] && (!is_valid[0] || generation[1] > generation[0]) ? 1 : 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint32_t slot = i == 0 ? newest : 1 - newest;
        if (is_valid[slot] && fedmote_package_open(package, port, base(store, slot), size[slot]) == FEDMOTE_OK) {
            store->is_installed = true;
            store->slot = slot;
            return FEDMOTE_OK;
        }
    }
    return FEDMOTE_ERR_NO_PACKAGE;
}

const uint8_t *fedmote_store_package(const struct fedmote_store *store) {
    return store->is_installed ? base(store, store->slot) : NULL;
}

const uint8_t *fedmote_store_hash(const struct fedmote_store *store) {
    return store->is_installed ? base(store, store->slot) + HASH_AT : NULL;
}

int32_t fedmote_store_reopen(struct fedmote_store *store, struct fedmote_package *package) {
    if (!store->is_installed) {
        return FEDMOTE_ERR_NO_PACKAGE;
    }
    int32_t status = fedmote_package_open(package, store->port, base(store, store->slot), fedmote_store_room(store));
    store->is_installed = status == FEDMOTE_OK;
    return status;
}

int32_t fedmote_store_begin(struct fedmote_store *store, uint32_t size) {
    if (size < HEADER_BYTES || size % PACKAGE_ALIGN != 0) {
        return FEDMOTE_ERR_PACKAGE_SIZE;
    }
    if (size > fedmote_store_room(store)) {
        return FEDMOTE_ERR_SLOT;
    }
    const struct fedmote_port *port = store->port;
    return port->slot_erase(port->context, spare(store)) < 0 ? FEDMOTE_ERR_SLOT_IO : FEDMOTE_OK;
}

int32_t fedmote_store_write(struct fedmote_store *store, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    const struct fedmote_port *port = store->port;
    if (size > fedmote_store_room(store) || offset > fedmote_store_room(store) - size) {
        return FEDMOTE_ERR_SLOT_IO;
    }
    return port->slot_write(port->context, spare(store), offset, bytes, size) < 0 ? FEDMOTE_ERR_SLOT_IO : FEDMOTE_OK;
}

int32_t fedmote_store_verify(const struct fedmote_store *store, uint32_t size, const uint8_t hash[32],
                             struct fedmote_package *package) {
    int32_t status = fedmote_package_open(package, store->port, base(store, spare(store)), size);
    if (status != FEDMOTE_OK) {
        return status;
    }
    return memcmp(package->hash, hash, HASH_BYTES) == 0 ? FEDMOTE_OK : FEDMOTE_ERR_PACKAGE_HASH;
}

int32_t fedmote_store_commit(struct fedmote_store *store, uint32_t size) {
    const struct fedmote_port *port = store->port;
    uint32_t slot = spare(store);
    uint8_t record[FEDMOTE_RECORD_BYTES];
    memcpy(record, record_magic, sizeof record_magic);
    fedmote_put_u32(record + 4, store->generation + 1);
    fedmote_put_u32(record + 8, size);
    fedmote_put_u32(record + 12, fedmote_crc32(0, record, 12));
    int32_t status = port->slot_write(port->context, slot, fedmote_store_room(store), record, sizeof record);
    if (status < 0 || memcmp(base(store, slot) + fedmote_store_room(store), record, sizeof record) != 0) {
        return FEDMOTE_ERR_SLOT_IO;
    }
    store->generation++;
    store->slot = slot;
    store->is_installed = true;
    return FEDMOTE_OK;
}
