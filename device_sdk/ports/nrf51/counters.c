/* SPDX-License-Identifier: Apache-2.0
 *
 * TIMER0 and TIMER1 at 16 MHz as counters of an emulator with an instruction-driven clock. There both have 32 bits; on
 * the part TIMER1 has 16.
 */
#include "chip.h"
#include "registers.h"

void chip_counters_start(void) {
    for (uint32_t timer = 0; timer < CHIP_COUNTERS; timer++) {
        TIMER_BITS(timer) = TIMER_32_BITS;
        TIMER_PRESCALER(timer) = 0U;
        TIMER_TASK_CLEAR(timer) = 1U;
        TIMER_TASK_START(timer) = 1U;
    }
}

uint32_t chip_counter(uint32_t counter) {
    TIMER_TASK_CAPTURE_0(counter) = 1U;
    return TIMER_COMPARE_0(counter);
}
