/* SPDX-License-Identifier: Apache-2.0
 *
 * The flash of package slots and journal: a large sector each, programmed by words. An erase takes up to two seconds,
 * during which the core stands still whenever it fetches from flash.
 */
#include <string.h>

#include "chip.h"
#include "registers.h"

#define FIRST_LARGE_SECTOR 5U
#define FIRST_LARGE_SECTOR_ADDRESS 0x08020000U
#define LARGE_SECTOR_BYTES 0x20000U
#define PROGRAM_TURNS 10000U   /* 16 us per word in the data sheet, 0.1 ms at worst */
#define ERASE_TURNS 100000000U /* at least 3 s at 168 MHz; the data sheet's worst is 2 s */

bool chip_flash_start(void) {
    /* The controller is locked after reset and opens only to the two keys; what is not modelled reads as zero. */
    if ((FLASH_CR & FLASH_CR_LOCK) == 0U) {
        return false;
    }
    FLASH_KEYR = FLASH_KEY_1;
    FLASH_KEYR = FLASH_KEY_2;
    const bool is_open = (FLASH_CR & FLASH_CR_LOCK) == 0U;
    FLASH_CR |= FLASH_CR_LOCK;
    return is_open;
}

/* Waits until the controller is idle. 0, or an error of chip.h. */
static int32_t flash_wait(uint32_t turns) {
    while ((FLASH_SR & FLASH_SR_BUSY) != 0U) {
        if (turns-- == 0U) {
            return CHIP_ERROR_FLASH_TIMEOUT;
        }
    }
    return (FLASH_SR & FLASH_SR_ERRORS) == 0U ? 0 : CHIP_ERROR_FLASH_REFUSED;
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

int32_t chip_flash_erase(uintptr_t address, uint32_t bytes) {
    (void)bytes; /* a region is a sector */
    int32_t status = flash_open();
    if (status == 0) {
        const uint32_t behind = ((uint32_t)address - FIRST_LARGE_SECTOR_ADDRESS) / LARGE_SECTOR_BYTES;
        const uint32_t sector = FIRST_LARGE_SECTOR + behind;
        FLASH_CR = FLASH_CR_WORDS | FLASH_CR_SECTOR_ERASE | FLASH_CR_SECTOR(sector);
        FLASH_CR |= FLASH_CR_START;
        status = flash_wait(ERASE_TURNS);
    }
    flash_close();
    return status;
}

int32_t chip_flash_write(uintptr_t address, const uint8_t *bytes, uint32_t size) {
    int32_t status = flash_open();
    for (uint32_t done = 0; status == 0 && done < size; done += 4U) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word); /* the caller's bytes may lie anywhere */
        FLASH_CR = FLASH_CR_WORDS | FLASH_CR_PROGRAM;
        STM32_REGISTER(address + done) = word;
        status = flash_wait(PROGRAM_TURNS);
    }
    flash_close();
    return status;
}
