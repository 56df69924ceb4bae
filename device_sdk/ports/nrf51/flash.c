/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash by words and pages of 1 KB. An erase takes 22 ms, a word 46 us, and the core stands still meanwhile.
 */
#include <string.h>

#include "chip.h"
#include "registers.h"

#define PAGE_BYTES 1024U
#define TURNS 100000U /* the core hardly takes a turn while the controller is busy */

bool chip_flash_start(void) { return true; }

static int32_t flash_wait(void) {
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        if (NVMC_READY != 0U) {
            return 0;
        }
    }
    return CHIP_ERROR_FLASH_TIMEOUT;
}

int32_t chip_flash_erase(uintptr_t address, uint32_t bytes) {
    int32_t status = 0;
    NVMC_CONFIG = NVMC_CONFIG_ERASE;
    for (uint32_t done = 0; status == 0 && done < bytes; done += PAGE_BYTES) {
        NVMC_ERASE_PAGE = (uint32_t)address + done;
        status = flash_wait();
    }
    NVMC_CONFIG = NVMC_CONFIG_READ;
    return status;
}

int32_t chip_flash_write(uintptr_t address, const uint8_t *bytes, uint32_t size) {
    int32_t status = 0;
    NVMC_CONFIG = NVMC_CONFIG_WRITE;
    for (uint32_t done = 0; status == 0 && done < size; done += 4U) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word); /* the caller's bytes may lie anywhere */
        CORE_REGISTER(address + done) = word;
        status = flash_wait();
    }
    NVMC_CONFIG = NVMC_CONFIG_READ;
    return status;
}
