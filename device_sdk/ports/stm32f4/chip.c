/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs of ports/cortex_m need of an STM32F4, and what a fault shows: the LED on PC12 (the Olimex H405's)
 * blinks.
 */
#include "chip.h"

#include "registers.h"
#include "stm32f4.h"

#define LED_PIN 12U

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return stm32_uart_read(bytes, capacity);
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return stm32_uart_write(bytes, size);
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};

void chip_start(void) { stm32_start(); }

void chip_sleep(void) { stm32_sleep(); }

__attribute__((noreturn)) void chip_halt(void) {
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOC;
    GPIO_MODER(GPIOC_BASE) = (GPIO_MODER(GPIOC_BASE) & ~(3U << (2U * LED_PIN))) | (1U << (2U * LED_PIN));
    for (;;) {
        GPIO_ODR(GPIOC_BASE) ^= 1U << LED_PIN;
        for (volatile uint32_t turn = 0; turn < 1000000U; turn++) {
        }
    }
}
