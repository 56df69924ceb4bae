/* SPDX-License-Identifier: Apache-2.0
 *
 * Start of an STM32F4, and what a fault shows: the LED on PC12 (the Olimex H405's)
 * blinks.
 */
#include "chip.h"

#include "registers.h"
#include "stm32f4.h"
#include "systick.h"

#define LED_PIN 12U

void chip_start(void) {
    stm32_clock_start();
    systick_start(stm32_core_hz());
    stm32_uart_start();
}

void chip_sleep(void) { __asm volatile("wfi" ::: "memory"); }

__attribute__((noreturn)) void chip_halt(void) {
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOC;
    GPIO_MODER(GPIOC_BASE) = (GPIO_MODER(GPIOC_BASE) & ~(3U << (2U * LED_PIN))) | (1U << (2U * LED_PIN));
    for (;;) {
        GPIO_ODR(GPIOC_BASE) ^= 1U << LED_PIN;
        for (volatile uint32_t turn = 0; turn < 1000000U; turn++) {
        }
    }
}
