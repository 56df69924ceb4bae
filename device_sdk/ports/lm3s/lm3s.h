/* SPDX-License-Identifier: Apache-2.0
 *
 * Drivers of the Stellaris LM3S6965 behind chip.h. There is one of each, with state of its own.
 */
#ifndef FEDMOTE_LM3S_H
#define FEDMOTE_LM3S_H

#include <stdint.h>

/* clock.c: 50 MHz from the crystal, or the internal oscillator where it does not come up; returns hertz. */
uint32_t lm3s_clock_start(void);

/* uart.c: board.toml's baud, 8 bits, no parity, PA1 out, PA0 in. */
void lm3s_uart_start(uint32_t core_hz);

#endif
