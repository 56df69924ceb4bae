/* SPDX-License-Identifier: Apache-2.0
 *
 * Core clock: 50 MHz from the crystal through the PLL, or the internal oscillator (12 MHz, give or take 30 %, too
 * coarse for a fast serial line) where the PLL does not lock. The wait is counted, so that a broken crystal does not
 * stop the part.
 */
#include <stdbool.h>

#include "fedmote_board.h"
#include "lm3s.h"
#include "registers.h"

#define FULL_CLOCK_HZ 50000000U
#define INTERNAL_CLOCK_HZ 12000000U
#define LOCK_TURNS 100000U /* some 40 ms at 12 MHz; the data sheet's worst is 0.5 ms */

#if FEDMOTE_BOARD_CLOCK_HSE_HZ != 8000000
#error "clock.hse_hz of board.toml must be 8000000"
#endif

static bool pll_locks(void) {
    for (uint32_t turn = 0; turn < LOCK_TURNS; turn++) {
        if ((SYSCTL_RIS & SYSCTL_RIS_PLL_LOCKED) != 0U) {
            return true;
        }
    }
    return false;
}

uint32_t lm3s_clock_start(void) {
    const uint32_t at_reset = SYSCTL_RCC;
    /* The order of the data sheet: off the PLL and the divider, then crystal and power, then the divider, then back. */
    uint32_t rcc = (at_reset | SYSCTL_RCC_BYPASS) & ~SYSCTL_RCC_USE_DIVIDER;
    SYSCTL_RCC = rcc;
    rcc &= ~(SYSCTL_RCC_MAIN_OSCILLATOR_OFF | SYSCTL_RCC_SOURCE_MASK | SYSCTL_RCC_CRYSTAL_MASK | SYSCTL_RCC_PLL_OFF);
    rcc |= SYSCTL_RCC_CRYSTAL_8_MHZ;
    SYSCTL_RCC = rcc;
    rcc = (rcc & ~SYSCTL_RCC_DIVIDER_MASK) | SYSCTL_RCC_DIVIDER_4 | SYSCTL_RCC_USE_DIVIDER;
    SYSCTL_RCC = rcc;
    if (!pll_locks()) {
        SYSCTL_RCC = at_reset;
        return INTERNAL_CLOCK_HZ;
    }
    SYSCTL_RCC = rcc & ~SYSCTL_RCC_BYPASS;
    return FULL_CLOCK_HZ;
}
