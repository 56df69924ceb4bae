/* SPDX-License-Identifier: Apache-2.0
 *
 * Core clock: 168 MHz from the crystal through the PLL, or the 16 MHz reset clock where crystal or PLL do not come up.
 * Every wait for a ready flag is counted, so that a broken crystal costs milliseconds, not the device.
 */
#include <stdbool.h>

#include "fedmote_board.h"
#include "registers.h"
#include "stm32f4.h"

#define RESET_CLOCK_HZ 16000000U
#define FULL_CLOCK_HZ 168000000U
#define WAIT_TURNS 100000U /* some 40 ms at 16 MHz; crystals need 2 ms, the PLL 0.3 ms */

#if FEDMOTE_BOARD_CLOCK_HSE_HZ % 1000000 != 0 || FEDMOTE_BOARD_CLOCK_HSE_HZ < 4000000 ||                               \
    FEDMOTE_BOARD_CLOCK_HSE_HZ > 26000000
#error "clock.hse_hz of board.toml must be 4 to 26 whole megahertz"
#endif

static uint32_t core_hz = RESET_CLOCK_HZ;
static uint32_t peripheral_hz = RESET_CLOCK_HZ;

static bool wait_for(volatile uint32_t *flags, uint32_t mask, uint32_t value) {
    for (uint32_t turn = 0; turn < WAIT_TURNS; turn++) {
        if ((*flags & mask) == value) {
            return true;
        }
    }
    return false;
}

/* 1 MHz into the PLL, 336 MHz in its oscillator, 168 MHz out, 48 MHz for the random number generator. */
static bool start_pll(void) {
    RCC_CR |= RCC_CR_HSEON;
    if (!wait_for(&RCC_CR, RCC_CR_HSERDY, RCC_CR_HSERDY)) {
        RCC_CR &= ~RCC_CR_HSEON;
        return false;
    }
    RCC_APB1ENR |= RCC_APB1ENR_PWR;
    PWR_CR |= PWR_CR_SCALE_1;
    RCC_PLLCFGR = (FEDMOTE_BOARD_CLOCK_HSE_HZ / 1000000U) | (336U << 6) | RCC_PLLCFGR_SOURCE_HSE | (7U << 24);
    RCC_CR |= RCC_CR_PLLON;
    if (!wait_for(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY)) {
        RCC_CR &= ~RCC_CR_PLLON;
        return false;
    }
    return true;
}

void stm32_clock_start(void) {
    /* On the part the reset oscillator runs here. Zero means that nothing models the controller: QEMU's core and tick
     * then run at the full clock from the start. */
    if ((RCC_CR & RCC_CR_HSIRDY) == 0U) {
        core_hz = FULL_CLOCK_HZ;
        peripheral_hz = FULL_CLOCK_HZ / 2U;
        return;
    }
    if (!start_pll()) {
        return;
    }
    /* Wait states and bus dividers first: flash answers at 30 MHz, the buses bear 42 and 84 MHz. */
    FLASH_ACR = FLASH_ACR_LATENCY_5 | FLASH_ACR_PREFETCH | FLASH_ACR_INSTRUCTION_CACHE | FLASH_ACR_DATA_CACHE;
    (void)FLASH_ACR; /* the reference manual: read back that the wait states count before the clock rises */
    RCC_CFGR |= RCC_CFGR_APB1_BY_4 | RCC_CFGR_APB2_BY_2;
    RCC_CFGR = (RCC_CFGR & ~RCC_CFGR_SWITCH_MASK) | RCC_CFGR_SWITCH_PLL;
    if (wait_for(&RCC_CFGR, RCC_CFGR_STATUS_MASK, RCC_CFGR_STATUS_PLL)) {
        core_hz = FULL_CLOCK_HZ;
        peripheral_hz = FULL_CLOCK_HZ / 2U;
    } else {
        RCC_CFGR &= ~RCC_CFGR_SWITCH_MASK;
        peripheral_hz = RESET_CLOCK_HZ / 2U; /* the divider stays */
    }
}

uint32_t stm32_core_hz(void) { return core_hz; }

uint32_t stm32_peripheral_hz(void) { return peripheral_hz; }
