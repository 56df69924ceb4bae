/* SPDX-License-Identifier: Apache-2.0
 * Milliseconds from the core's own timer. */
#include "registers.h"
#include "stm32f4.h"

#define SYSTICK_ON 7U /* counting, interrupting, from the core clock */

static volatile uint32_t milliseconds;

void systick_handler(void);

void systick_handler(void) { milliseconds++; }

void stm32_tick_start(void) {
    SYSTICK_RELOAD = stm32_core_hz() / 1000U - 1U;
    SYSTICK_VALUE = 0U;
    SYSTICK_CONTROL = SYSTICK_ON;
}

uint32_t stm32_now_ms(void) { return milliseconds; }

void stm32_sleep(void) { __asm volatile("wfi" ::: "memory"); }
