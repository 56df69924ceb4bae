/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_regions.h"

#include <string.h>

#include "chip.h"
#include "fedmote_board.h"
#include "slots.h"

#ifdef FEDMOTE_BOARD_REGIONS_RAM_JOURNAL_ADDRESS
static uintptr_t ram_address(uint32_t region) {
    return FEDMOTE_BOARD_REGIONS_RAM_JOURNAL_ADDRESS + region * (uintptr_t)FEDMOTE_BOARD_JOURNAL_BYTES;
}
#else
static uintptr_t ram_address(uint32_t region) {
    (void)region;
    return 0U;
}
#endif

static uintptr_t region_address(uint32_t region) {
    if (slots_are_in_ram()) {
        return ram_address(region);
    }
    return region == 0U ? (uintptr_t)FEDMOTE_BOARD_REGIONS_JOURNAL0_ADDRESS
                        : (uintptr_t)FEDMOTE_BOARD_REGIONS_JOURNAL1_ADDRESS;
}

const uint8_t *journal_base(void *context, uint32_t region) {
    (void)context;
    return (const uint8_t *)region_address(region);
}

int32_t journal_erase(void *context, uint32_t region) {
    (void)context;
    if (region > 1U) {
        return SLOTS_ERROR_ARGUMENT;
    }
    if (slots_are_in_ram()) {
        memset((void *)region_address(region), 0xFF, FEDMOTE_BOARD_JOURNAL_BYTES);
        return 0;
    }
    return chip_flash_erase(region_address(region), FEDMOTE_BOARD_JOURNAL_BYTES);
}

int32_t journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    if (region > 1U || offset % 4U != 0U || size % 4U != 0U || offset > FEDMOTE_BOARD_JOURNAL_BYTES ||
        size > FEDMOTE_BOARD_JOURNAL_BYTES - offset) {
        return SLOTS_ERROR_ARGUMENT;
    }
    if (slots_are_in_ram()) {
        memcpy((void *)(region_address(region) + offset), bytes, size);
        return 0;
    }
    return chip_flash_write(region_address(region) + offset, bytes, size);
}
