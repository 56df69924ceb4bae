/* SPDX-License-Identifier: Apache-2.0
 *
 * Drivers of the nRF51822 behind chip.h. There is one of each, with state of its own. The serial line has two: with
 * rings and interrupts for the federated device (device_line.c), and by polling for programs whose RAM is the model's
 * (polled_line.c). Each defines chip_start() and chip_port.
 */
#ifndef FEDMOTE_NRF51_H
#define FEDMOTE_NRF51_H

/* The 16 MHz crystal, which the serial line's rate comes from. */
void nrf51_clock_start(void);

/* The line at board.toml's rate, 8 bits, no parity, on its pins. */
void nrf51_uart_start(void);

#endif
