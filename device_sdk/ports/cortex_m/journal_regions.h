/* SPDX-License-Identifier: Apache-2.0
 *
 * The two regions of the journal behind struct fedmote_port. On the part they are the flash regions journal0 and
 * journal1 of board.toml; where no flash controller answers they are the RAM region ram_journal, or there are none on a
 * board without it.
 */
#ifndef FEDMOTE_CORTEX_M_JOURNAL_REGIONS_H
#define FEDMOTE_CORTEX_M_JOURNAL_REGIONS_H

#include <stdint.h>

/* As in struct fedmote_port, after slots_start(). Errors: those of slots.h. */
const uint8_t *journal_base(void *context, uint32_t region);
int32_t journal_erase(void *context, uint32_t region);
int32_t journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size);

#endif
