/* SPDX-License-Identifier: Apache-2.0
 *
 * The two package slots behind struct fedmote_port. On the part they are the flash regions slot0 and slot1 of
 * board.toml; where no flash controller answers (an emulator that shows flash read-only) and the board has a region
 * ram_slots, they are RAM behind the same calls.
 */
#ifndef FEDMOTE_CORTEX_M_SLOTS_H
#define FEDMOTE_CORTEX_M_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

/* After chip_start(), before the others. */
void slots_start(void);

/* Whether the slots are RAM. */
bool slots_are_in_ram(void);

/* As in struct fedmote_port. Errors: SLOTS_ERROR_ARGUMENT, and those of chip_flash_erase() and chip_flash_write(). */
const uint8_t *slots_base(void *context, uint32_t slot);
int32_t slots_erase(void *context, uint32_t slot);
int32_t slots_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size);

#define SLOTS_ERROR_ARGUMENT (-132)

/* What slots and other areas behind the same calls have in common: `address` is in flash, or in RAM where the slots
 * are. `area_bytes` is the size of the whole area, which is erased at once. Errors as above. */
int32_t area_erase(uintptr_t address, uint32_t area_bytes);
int32_t area_write(uintptr_t address, uint32_t area_bytes, uint32_t offset, const uint8_t *bytes, uint32_t size);

#endif
