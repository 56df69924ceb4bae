/* SPDX-License-Identifier: Apache-2.0 */
#include "slots.h"

#include <string.h>

#include "chip.h"
#include "fedmote_board.h"

#ifdef FEDMOTE_BOARD_REGIONS_RAM_SLOTS_ADDRESS
static bool is_ram;

void slots_start(void) { is_ram = !chip_flash_start(); }

static uintptr_t ram_slots(void) { return FEDMOTE_BOARD_REGIONS_RAM_SLOTS_ADDRESS; }
#else
static const bool is_ram = false;

void slots_start(void) { (void)chip_flash_start(); }

static uintptr_t ram_slots(void) { return 0U; }
#endif

bool slots_are_in_ram(void) { return is_ram; }

static uintptr_t slot_address(uint32_t slot) {
    if (is_ram) {
        return ram_slots() + slot * (uintptr_t)FEDMOTE_BOARD_SLOT_BYTES;
    }
    return slot == 0U ? (uintptr_t)FEDMOTE_BOARD_REGIONS_SLOT0_ADDRESS : (uintptr_t)FEDMOTE_BOARD_REGIONS_SLOT1_ADDRESS;
}

const uint8_t *slots_base(void *context, uint32_t slot) {
    (void)context;
    return (const uint8_t *)slot_address(slot);
}

int32_t area_erase(uintptr_t address, uint32_t area_bytes) {
    if (is_ram) {
        memset((void *)address, 0xFF, area_bytes);
        return 0;
    }
    return chip_flash_erase(address, area_bytes);
}

int32_t area_write(uintptr_t address, uint32_t area_bytes, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    if (offset % 4U != 0U || size % 4U != 0U || offset > area_bytes || size > area_bytes - offset) {
        return SLOTS_ERROR_ARGUMENT;
    }
    if (is_ram) {
        memcpy((void *)(address + offset), bytes, size);
        return 0;
    }
    return chip_flash_write(address + offset, bytes, size);
}

int32_t slots_erase(void *context, uint32_t slot) {
    (void)context;
    return slot > 1U ? SLOTS_ERROR_ARGUMENT : area_erase(slot_address(slot), FEDMOTE_BOARD_SLOT_BYTES);
}

int32_t slots_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return slot > 1U ? SLOTS_ERROR_ARGUMENT
                     : area_write(slot_address(slot), FEDMOTE_BOARD_SLOT_BYTES, offset, bytes, size);
}
