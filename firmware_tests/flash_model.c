/* SPDX-License-Identifier: Apache-2.0 */
#include "flash_model.h"

#include <stddef.h>
#include <string.h>

uint32_t flash_draw(uint32_t *state) {
    uint32_t x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

static uint32_t draw(struct flash_model *flash) { return flash_draw(&flash->random); }

static void report(struct flash_model *flash, const char *fault) {
    if (flash->fault == NULL) {
        flash->fault = fault;
    }
}

void flash_init(struct flash_model *flash, const uint32_t sizes[FLASH_REGIONS], uint8_t erased) {
    memset(flash, 0, sizeof *flash);
    flash->erased = erased;
    flash->random = 1;
    flash->cut_at = flash->fail_at = FLASH_NEVER;
    for (uint32_t region = 0; region < FLASH_REGIONS; region++) {
        struct flash_region *one = &flash->regions[region];
        one->size = sizes[region];
        memset(one->bytes, 0xA5, sizeof one->bytes);
        memset(one->is_programmed, 1, sizeof one->is_programmed);
    }
}

void flash_arm(struct flash_model *flash, uint32_t cut_at, uint32_t fail_at) {
    flash->operations = 0;
    flash->cut_at = cut_at;
    flash->fail_at = fail_at;
}

/* Moves `bits` of a unit away from erased, and nothing back. */
static void program(struct flash_model *flash, struct flash_region *region, uint32_t unit, const uint8_t *bytes,
                    const uint8_t *bits) {
    uint8_t *cells = region->bytes + (size_t)unit * FLASH_UNIT;
    bool is_changed = false;
    for (uint32_t i = 0; i < FLASH_UNIT; i++) {
        const uint8_t wanted = (uint8_t)((bytes[i] ^ flash->erased) & bits[i]);
        if (((cells[i] ^ flash->erased) & ~wanted) != 0) {
            report(flash, "a bit goes back to erased without an erase");
        }
        cells[i] = (uint8_t)(flash->erased ^ wanted);
        is_changed = is_changed || wanted != 0;
    }
    /* A unit that a cut has left as it was is as good as erased; one that was programmed whole never is. */
    region->is_programmed[unit] = is_changed;
}

static const uint8_t all_bits[FLASH_UNIT] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

static void tear_unit(struct flash_model *flash, struct flash_region *region, uint32_t unit, const uint8_t *bytes) {
    uint8_t bits[FLASH_UNIT] = {0};
    const uint32_t prefix = 1U + draw(flash) % (FLASH_UNIT - 1U);
    for (uint32_t i = 0; i < FLASH_UNIT; i++) {
        bits[i] = flash->tear == FLASH_TEAR_PREFIX ? (i < prefix ? 0xFF : 0) : (uint8_t)draw(flash);
    }
    program(flash, region, unit, bytes, bits);
}

static void erase_unit(struct flash_model *flash, struct flash_region *region, uint32_t unit) {
    memset(region->bytes + (size_t)unit * FLASH_UNIT, flash->erased, FLASH_UNIT);
    region->is_programmed[unit] = false;
}

static void tear_block(struct flash_model *flash, struct flash_region *region, uint32_t block) {
    const uint32_t first = block * FLASH_BLOCK_BYTES / FLASH_UNIT;
    const uint32_t count = FLASH_BLOCK_BYTES / FLASH_UNIT;
    const uint32_t prefix = draw(flash) % count;
    for (uint32_t unit = first; unit < first + count && unit < region->size / FLASH_UNIT; unit++) {
        const uint32_t kind = draw(flash) % 3;
        if (flash->tear == FLASH_TEAR_PREFIX ? unit < first + prefix : kind == 0) {
            erase_unit(flash, region, unit);
        } else if (flash->tear != FLASH_TEAR_PREFIX && kind == 1) {
            for (uint32_t i = 0; i < FLASH_UNIT; i++) {
                region->bytes[unit * FLASH_UNIT + i] = (uint8_t)draw(flash);
            }
            region->is_programmed[unit] = true;
        }
    }
}

static void shuffle(struct flash_model *flash, uint32_t *order, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        order[i] = i;
    }
    for (uint32_t i = count; flash->tear == FLASH_TEAR_UNORDERED && i > 1; i--) {
        const uint32_t other = draw(flash) % i;
        const uint32_t kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

static int32_t fail(struct flash_model *flash, uint32_t region, uint32_t offset, bool is_erase) {
    flash->has_failed = true;
    flash->failed_region = region;
    flash->failed_offset = offset;
    flash->is_failed_erase = is_erase;
    return FLASH_ERROR;
}

int32_t flash_erase(struct flash_model *flash, uint32_t number) {
    struct flash_region *region = &flash->regions[number];
    const uint32_t blocks = (region->size + FLASH_BLOCK_BYTES - 1U) / FLASH_BLOCK_BYTES;
    uint32_t order[FLASH_BLOCKS];
    shuffle(flash, order, blocks);
    for (uint32_t i = 0; i < blocks; i++) {
        const uint32_t operation = flash->operations++;
        const uint32_t block = order[i];
        region->erases[block]++;
        if (operation == flash->cut_at) {
            if (flash->tear != FLASH_TEAR_NOTHING) {
                tear_block(flash, region, block);
            }
            longjmp(*flash->power, 1);
        }
        if (operation == flash->fail_at && !flash->has_effect) {
            return fail(flash, number, block * FLASH_BLOCK_BYTES, true);
        }
        for (uint32_t at = block * FLASH_BLOCK_BYTES; at < (block + 1U) * FLASH_BLOCK_BYTES && at < region->size;
             at += FLASH_UNIT) {
            erase_unit(flash, region, at / FLASH_UNIT);
        }
        if (operation == flash->fail_at) {
            return fail(flash, number, block * FLASH_BLOCK_BYTES, true);
        }
    }
    return 0;
}

int32_t flash_write(struct flash_model *flash, uint32_t number, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    struct flash_region *region = &flash->regions[number];
    uint32_t order[FLASH_UNITS];
    if (offset % FLASH_UNIT != 0 || size % FLASH_UNIT != 0 || offset > region->size || size > region->size - offset) {
        report(flash, "a write that is not aligned, or outside its region");
        return FLASH_ERROR;
    }
    region->calls++;
    shuffle(flash, order, size / FLASH_UNIT);
    for (uint32_t i = 0; i < size / FLASH_UNIT; i++) {
        const uint32_t operation = flash->operations++;
        const uint32_t at = order[i] * FLASH_UNIT;
        const uint32_t unit = (offset + at) / FLASH_UNIT;
        if (region->is_programmed[unit]) {
            report(flash, "a unit is programmed twice without an erase");
        }
        if (operation == flash->cut_at) {
            if (flash->tear != FLASH_TEAR_NOTHING) {
                tear_unit(flash, region, unit, bytes + at);
            }
            longjmp(*flash->power, 1);
        }
        if (operation == flash->fail_at && !flash->has_effect) {
            return fail(flash, number, offset + at, false);
        }
        program(flash, region, unit, bytes + at, all_bits);
        region->is_programmed[unit] = true;
        if (operation == flash->fail_at) {
            return fail(flash, number, offset + at, false);
        }
    }
    return 0;
}

uint32_t flash_wear(const struct flash_model *flash, uint32_t region) {
    uint32_t most = 0;
    for (uint32_t block = 0; block < FLASH_BLOCKS; block++) {
        const uint32_t erases = flash->regions[region].erases[block];
        most = erases > most ? erases : most;
    }
    return most;
}
