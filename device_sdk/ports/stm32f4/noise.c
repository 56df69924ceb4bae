/* SPDX-License-Identifier: Apache-2.0
 * The part's random number generator, where its 48 MHz clock runs, and the fine value of the tick.
 */
#include "chip.h"
#include "registers.h"

#define RNG_TURNS 1000U /* a word takes 40 periods of 48 MHz */

static uint32_t generator_word(void) {
    RCC_AHB2ENR |= RCC_AHB2ENR_RNG;
    RNG_CR |= RNG_CR_ENABLE;
    for (uint32_t turn = 0; turn < RNG_TURNS; turn++) {
        const uint32_t flags = RNG_SR;
        if ((flags & RNG_SR_ERRORS) != 0U) {
            return 0U; /* no 48 MHz clock, or a seed error */
        }
        if ((flags & RNG_SR_READY) != 0U) {
            return RNG_DR;
        }
    }
    return 0U;
}

uint32_t chip_noise(void) { return generator_word() ^ SYSTICK_VALUE; }
