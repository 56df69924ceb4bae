/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_regions.h"

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
    return region > 1U ? SLOTS_ERROR_ARGUMENT : area_erase(region_address(region), FEDMOTE_BOARD_JOURNAL_BYTES);
}

int32_t journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return region > 1U ? SLOTS_ERROR_ARGUMENT
                       : area_write(region_address(region), FEDMOTE_BOARD_JOURNAL_BYTES, offset, bytes, size);
}
