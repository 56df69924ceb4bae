/* SPDX-License-Identifier: Apache-2.0
 *
 * Counter 0 is that of the FPGA, which always runs. Counter 1 is a timer of the design kit, which counts down, or where
 * the board has none (SSE-300) the system's counter.
 */
#include "chip.h"
#include "core.h"
#include "fedmote_board.h"

#define FPGA_COUNTER CORE_REGISTER(FEDMOTE_BOARD_PERIPHERALS_FPGA + 0x18U)

#ifdef FEDMOTE_BOARD_PERIPHERALS_TIMER
#define TIMER(offset) CORE_REGISTER(FEDMOTE_BOARD_PERIPHERALS_TIMER + (offset))
#define TIMER_CONTROL TIMER(0x00U)
#define TIMER_VALUE TIMER(0x04U)
#define TIMER_RELOAD TIMER(0x08U)

void chip_counters_start(void) {
    TIMER_RELOAD = UINT32_MAX;
    TIMER_VALUE = UINT32_MAX;
    TIMER_CONTROL = 1U;
}

static uint32_t second_counter(void) { return UINT32_MAX - TIMER_VALUE; }
#else
#define SYSTEM_COUNTER_CONTROL CORE_REGISTER(FEDMOTE_BOARD_PERIPHERALS_SYSTEM_COUNTER + 0x00U)
#define SYSTEM_COUNTER_LOW CORE_REGISTER(FEDMOTE_BOARD_PERIPHERALS_SYSTEM_COUNTER + 0x08U)

void chip_counters_start(void) { SYSTEM_COUNTER_CONTROL = 1U; }

static uint32_t second_counter(void) { return SYSTEM_COUNTER_LOW; }
#endif

uint32_t chip_counter(uint32_t counter) { return counter == 0U ? FPGA_COUNTER : second_counter(); }
