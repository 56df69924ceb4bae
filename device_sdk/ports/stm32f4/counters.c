/* SPDX-License-Identifier: Apache-2.0
 *
 * TIM2 and TIM5, the two timers with 32 bits, as counters of an emulator with an instruction-driven clock, which runs
 * them at 1 GHz.
 */
#include "chip.h"
#include "registers.h"

#define TIMER(number, offset) STM32_REGISTER(timer_bases[number] + (offset))
#define TIMER_CONTROL 0x00U
#define TIMER_EVENT 0x14U
#define TIMER_COUNTER 0x24U
#define TIMER_PRESCALER 0x28U
#define TIMER_RELOAD 0x2CU

static const uint32_t timer_bases[CHIP_COUNTERS] = {0x40000000U, 0x40000C00U};

void chip_counters_start(void) {
    RCC_APB1ENR |= RCC_APB1ENR_TIM2 | RCC_APB1ENR_TIM5;
    for (uint32_t timer = 0; timer < CHIP_COUNTERS; timer++) {
        TIMER(timer, TIMER_PRESCALER) = 0U;
        TIMER(timer, TIMER_RELOAD) = UINT32_MAX;
        TIMER(timer, TIMER_EVENT) = 1U;
        TIMER(timer, TIMER_CONTROL) = 1U;
    }
}

uint32_t chip_counter(uint32_t counter) { return TIMER(counter, TIMER_COUNTER); }
