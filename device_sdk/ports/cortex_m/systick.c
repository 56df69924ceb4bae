/* SPDX-License-Identifier: Apache-2.0 */
#include "systick.h"

#include "chip.h"
#include "core.h"

static volatile uint32_t milliseconds;

void systick_handler(void);

void systick_handler(void) { milliseconds++; }

void systick_start(uint32_t core_hz) {
    SYSTICK_RELOAD = core_hz / 1000U - 1U;
    SYSTICK_VALUE = 0U;
    SYSTICK_CONTROL = SYSTICK_COUNTING | SYSTICK_INTERRUPTING | SYSTICK_CORE_CLOCK;
}

uint32_t chip_now_ms(void) { return milliseconds; }
