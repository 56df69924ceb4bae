/* SPDX-License-Identifier: Apache-2.0
 *
 * Milliseconds from the core's own timer, on chips that have it: chip_now_ms() of chip.h.
 */
#ifndef FEDMOTE_CORTEX_M_SYSTICK_H
#define FEDMOTE_CORTEX_M_SYSTICK_H

#include <stdint.h>

/* Starts it; from here on an interrupt comes each millisecond. */
void systick_start(uint32_t core_hz);

#endif
