/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash by words and pages of 1 KB. An erase takes 20 ms, a word 20 us; the core waits whenever it fetches from flash.
 */
#include <string.h>

#include "chip.h"
#include "registers.h"

#define PAGE_BYTES 1024U
#define TURNS 2000000U /* at least 0.2 s at 50 MHz */

bool chip_flash_start(void) {
    /* The address register keeps what is written to it; what is not modelled reads as zero. */
    FLASH_FMA = PAGE_BYTES;
    return FLASH_FMA == PAGE_BYTES;
}

/* Starts an operation on FMA and waits until its flag goes off. */
static int32_t flash_do(uint32_t operation) {
    FLASH_FCMISC = FLASH_ACCESS_ERROR; /* of former failures */
    FLASH_FMC = FLASH_FMC_KEY | operation;
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        if ((FLASH_FMC & operation) == 0U) {
            return (FLASH_FCRIS & FLASH_ACCESS_ERROR) == 0U ? 0 : CHIP_ERROR_FLASH_REFUSED;
        }
    }
    return CHIP_ERROR_FLASH_TIMEOUT;
}

int32_t chip_flash_erase(uintptr_t address, uint32_t bytes) {
    int32_t status = 0;
    for (uint32_t done = 0; status == 0 && done < bytes; done += PAGE_BYTES) {
        FLASH_FMA = (uint32_t)address + done;
        status = flash_do(FLASH_FMC_ERASE);
    }
    return status;
}

int32_t chip_flash_write(uintptr_t address, const uint8_t *bytes, uint32_t size) {
    int32_t status = 0;
    for (uint32_t done = 0; status == 0 && done < size; done += 4U) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word); /* the caller's bytes may lie anywhere */
        FLASH_FMA = (uint32_t)address + done;
        FLASH_FMD = word;
        status = flash_do(FLASH_FMC_WRITE);
    }
    return status;
}
