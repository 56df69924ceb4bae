/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash as parts have it, for tests: units of 8 bytes that are written once between erases, blocks that are erased as a
 * whole, wear, and every accident at a chosen operation. One operation is one unit programmed or one block erased, so a
 * call of the port takes several. What the part forbids is a fault, which is kept and told.
 */
#ifndef FLASH_MODEL_H
#define FLASH_MODEL_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    FLASH_UNIT = 8,
    FLASH_REGIONS = 4,
    FLASH_REGION_BYTES = 8192, /* at most */
    FLASH_BLOCK_BYTES = 512,
    FLASH_UNITS = FLASH_REGION_BYTES / FLASH_UNIT,
    FLASH_BLOCKS = FLASH_REGION_BYTES / FLASH_BLOCK_BYTES,
    FLASH_ERROR = -200
};

#define FLASH_NEVER UINT32_MAX

/* What a cut makes of the operation under way. */
enum flash_tear {
    FLASH_TEAR_NOTHING,   /* the power fails just before it */
    FLASH_TEAR_PREFIX,    /* some first bytes of the unit are there, some first units of the block erased */
    FLASH_TEAR_BITS,      /* any of the bits are there; of the block some is erased, some is noise, some as it was */
    FLASH_TEAR_UNORDERED, /* the same, and the units of one call land in any order */
    FLASH_TEARS
};

struct flash_region {
    uint8_t bytes[FLASH_REGION_BYTES] __attribute__((aligned(16)));
    uint32_t size;
    bool is_programmed[FLASH_UNITS];
    uint32_t erases[FLASH_BLOCKS];
    uint32_t calls; /* writes, for figures */
};

struct flash_model {
    struct flash_region regions[FLASH_REGIONS];
    uint8_t erased; /* what a byte reads as: 0xFF or 0x00 */
    enum flash_tear tear;
    uint32_t random;

    uint32_t operations; /* begun so far */
    uint32_t cut_at;     /* number of the operation during which the power fails */
    uint32_t fail_at;    /* of the one that returns an error, and ends the call */
    bool has_effect;     /* the failing one is done all the same */

    /* The operation that failed. */
    uint32_t failed_region, failed_offset;
    bool has_failed, is_failed_erase;

    const char *fault; /* the first thing that a part forbids; NULL: none */
    jmp_buf *power;    /* where a cut goes */
};

/* Regions of `sizes` bytes that hold noise, which nobody may write to before it is erased. */
void flash_init(struct flash_model *flash, const uint32_t sizes[FLASH_REGIONS], uint8_t erased);

/* Where accidents are counted from: the operation with number 0 is the next one. */
void flash_arm(struct flash_model *flash, uint32_t cut_at, uint32_t fail_at);

/* As in struct fedmote_port. A cut does not return. */
int32_t flash_erase(struct flash_model *flash, uint32_t region);
int32_t flash_write(struct flash_model *flash, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size);

/* The most often erased block of a region. */
uint32_t flash_wear(const struct flash_model *flash, uint32_t region);

/* xorshift: the next number of `state`, which is not 0. */
uint32_t flash_draw(uint32_t *state);

#endif
