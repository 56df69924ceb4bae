/* SPDX-License-Identifier: Apache-2.0
 *
 * Start of an LM3S6965, and what a fault shows: the status LED of the evaluation board, on PF0, blinks.
 */
#include "chip.h"

#include "lm3s.h"
#include "registers.h"
#include "systick.h"

#define LED_PIN 1U

void chip_start(void) {
    const uint32_t core_hz = lm3s_clock_start();
    SYSCTL_USECRL = core_hz / 1000000U - 1U; /* the flash controller counts microseconds by it */
    systick_start(core_hz);
    lm3s_uart_start(core_hz);
}

void chip_sleep(void) { __asm volatile("wfi" ::: "memory"); }

__attribute__((noreturn)) void chip_halt(void) {
    SYSCTL_RCGC2 |= SYSCTL_RCGC2_GPIOF;
    (void)SYSCTL_RCGC2;
    (void)SYSCTL_RCGC2;
    GPIO_DIRECTION(GPIOF_BASE) |= LED_PIN;
    GPIO_DIGITAL(GPIOF_BASE) |= LED_PIN;
    for (;;) {
        GPIO_DATA(GPIOF_BASE, LED_PIN) ^= LED_PIN;
        for (volatile uint32_t turn = 0; turn < 1000000U; turn++) {
        }
    }
}
