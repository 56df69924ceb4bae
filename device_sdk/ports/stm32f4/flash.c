/* SPDX-License-Identifier: Apache-2.0
 *
 * The two package slots. On the part slot 0 is flash sector 4 and slot 1 is sector 5, programmed by words; an erase
 * takes up to two seconds, during which the core stands still whenever it fetches from flash. Where no flash controller
 * answers (an emulator that shows flash read-only), the slots are RAM behind the same calls.
 */
#include <string.h>

#include "fedmote_board.h"
#include "registers.h"
#include "stm32f4.h"

#define SLOT_0_SECTOR 4U
#define SLOT_1_SECTOR 5U
#define PROGRAM_TURNS 10000U   /* 16 us per word in the data sheet, 0.1 ms at worst */
#define ERASE_TURNS 100000000U /* at least 3 s at 168 MHz; the data sheet's worst is 2 s */

static bool is_flash;

void stm32_slots_start(void) {
    /* The controller is locked after reset and opens only to the two keys; what is not modelled reads as zero. */
    is_flash = (FLASH_CR & FLASH_CR_LOCK) != 0U;
    if (is_flash) {
        FLASH_KEYR = FLASH_KEY_1;
        FLASH_KEYR = FLASH_KEY_2;
        is_flash = (FLASH_CR & FLASH_CR_LOCK) == 0U;
        FLASH_CR |= FLASH_CR_LOCK;
    }
}

static uintptr_t slot_address(uint32_t slot) {
    if (!is_flash) {
        return (uintptr_t)FEDMOTE_BOARD_REGIONS_RAM_SLOTS_ADDRESS + slot * (uintptr_t)FEDMOTE_BOARD_SLOT_BYTES;
    }
    return slot == 0U ? (uintptr_t)FEDMOTE_BOARD_REGIONS_SLOT0_ADDRESS : (uintptr_t)FEDMOTE_BOARD_REGIONS_SLOT1_ADDRESS;
}

const uint8_t *stm32_slot_base(void *context, uint32_t slot) {
    (void)context;
    return (const uint8_t *)slot_address(slot);
}

/* Waits until the controller is idle. 0, or an error of stm32f4.h. */
static int32_t flash_wait(uint32_t turns) {
    while ((FLASH_SR & FLASH_SR_BUSY) != 0U) {
        if (turns-- == 0U) {
            return STM32_ERROR_FLASH_TIMEOUT;
        }
    }
    return (FLASH_SR & FLASH_SR_ERRORS) == 0U ? 0 : STM32_ERROR_FLASH_REFUSED;
}

/* Opens the controller, with flags of former failures cleared. */
static int32_t flash_open(void) {
    FLASH_KEYR = FLASH_KEY_1;
    FLASH_KEYR = FLASH_KEY_2;
    FLASH_SR = FLASH_SR_ERRORS;
    return flash_wait(ERASE_TURNS);
}

/* Locks it again and drops what the data cache still holds of the old contents. */
static void flash_close(void) {
    FLASH_CR = FLASH_CR_LOCK;
    FLASH_ACR &= ~FLASH_ACR_DATA_CACHE;
    FLASH_ACR |= FLASH_ACR_DATA_CACHE_RESET;
    FLASH_ACR &= ~FLASH_ACR_DATA_CACHE_RESET;
    FLASH_ACR |= FLASH_ACR_DATA_CACHE;
}

int32_t stm32_slot_erase(void *context, uint32_t slot) {
    (void)context;
    if (slot > 1U) {
        return STM32_ERROR_ARGUMENT;
    }
    if (!is_flash) {
        memset((void *)slot_address(slot), 0xFF, FEDMOTE_BOARD_SLOT_BYTES);
        return 0;
    }
    int32_t status = flash_open();
    if (status == 0) {
        FLASH_CR = FLASH_CR_WORDS | FLASH_CR_SECTOR_ERASE | FLASH_CR_SECTOR(slot == 0U ? SLOT_0_SECTOR : SLOT_1_SECTOR);
        FLASH_CR |= FLASH_CR_START;
        status = flash_wait(ERASE_TURNS);
    }
    flash_close();
    return status;
}

int32_t stm32_slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    if (slot > 1U || offset % 4U != 0U || size % 4U != 0U || offset > FEDMOTE_BOARD_SLOT_BYTES ||
        size > FEDMOTE_BOARD_SLOT_BYTES - offset) {
        return STM32_ERROR_ARGUMENT;
    }
    if (!is_flash) {
        memcpy((void *)(slot_address(slot) + offset), bytes, size);
        return 0;
    }
    int32_t status = flash_open();
    for (uint32_t done = 0; status == 0 && done < size; done += 4U) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word); /* the caller's bytes may lie anywhere */
        FLASH_CR = FLASH_CR_WORDS | FLASH_CR_PROGRAM;
        STM32_REGISTER(slot_address(slot) + offset + done) = word;
        status = flash_wait(PROGRAM_TURNS);
    }
    flash_close();
    return status;
}
