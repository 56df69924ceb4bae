/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters of an emulator with an instruction-driven clock, which runs both at the reset clock. Counter 0 is the
 * watchdog's, which has 32 bits and never bites, since its interrupt stays off. Counter 1 is the core's timer. That has
 * 24 bits: those above them are taken from the watchdog, so that the two agree only where the core's timer is within
 * 2^23 ticks of it and right in every bit of its own.
 */
#include "chip.h"
#include "core.h"
#include "registers.h"

#define SYSTICK_MASK 0xFFFFFFU
#define SYSTICK_HALF 0x800000U

void chip_counters_start(void) {
    SYSCTL_RCGC0 |= SYSCTL_RCGC0_WATCHDOG;
    SYSTICK_RELOAD = SYSTICK_MASK;
    SYSTICK_VALUE = 0U;
    SYSTICK_CONTROL = SYSTICK_COUNTING | SYSTICK_CORE_CLOCK;
    WATCHDOG_LOAD = UINT32_MAX;
}

/* Both count down. */
static uint32_t watchdog(void) { return UINT32_MAX - WATCHDOG_VALUE; }

static uint32_t systick(void) {
    const uint32_t low = SYSTICK_MASK - SYSTICK_VALUE;
    const uint32_t near = watchdog();
    return near + (((low - near + SYSTICK_HALF) & SYSTICK_MASK) - SYSTICK_HALF);
}

uint32_t chip_counter(uint32_t counter) { return counter == 0U ? watchdog() : systick(); }
