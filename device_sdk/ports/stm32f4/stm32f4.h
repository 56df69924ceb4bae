/* SPDX-License-Identifier: Apache-2.0
 *
 * Drivers of the STM32F4 behind chip.h. There is one of each, with state of its own.
 */
#ifndef FEDMOTE_STM32F4_H
#define FEDMOTE_STM32F4_H

#include <stdint.h>

/* clock.c. Never fails: without a crystal the part runs from its reset clock. */
void stm32_clock_start(void);
uint32_t stm32_core_hz(void);       /* of the core, after stm32_clock_start() */
uint32_t stm32_peripheral_hz(void); /* of USART1's bus */

/* uart.c: board.toml's baud, 8 bits, no parity, PA9 out, PA10 in. */
void stm32_uart_start(void);

#endif
