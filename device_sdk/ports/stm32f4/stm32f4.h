/* SPDX-License-Identifier: Apache-2.0
 *
 * The STM32F4 behind struct fedmote_port: clock, serial line, flash slots, entropy. Drivers of a chip have state of
 * their own (there is one of each), so this is the one place of the SDK with static variables; nothing in src/ knows
 * them. Call stm32_start() once, before anything else here.
 */
#ifndef FEDMOTE_STM32F4_H
#define FEDMOTE_STM32F4_H

#include <stdbool.h>
#include <stdint.h>

#include "fedmote/fedmote_port.h"

/* Clock, tick, serial line, in this order. Never fails: without a crystal the part runs from its reset clock. */
void stm32_start(void);

/* clock.c */
void stm32_clock_start(void);
uint32_t stm32_core_hz(void);       /* of the core, after stm32_clock_start() */
uint32_t stm32_peripheral_hz(void); /* of USART1's bus */

/* tick.c */
void stm32_tick_start(void);
uint32_t stm32_now_ms(void);
void stm32_sleep(void); /* until an interrupt, at most 1 ms */

/* uart.c: 115200 baud (board.toml), 8 bits, no parity, PA9 out, PA10 in, rings of STM32_UART_RING bytes */
#define STM32_UART_RING 2048U
void stm32_uart_start(void);
int32_t stm32_uart_read(uint8_t *bytes, uint32_t capacity);
int32_t stm32_uart_write(const uint8_t *bytes, uint32_t size);
void stm32_uart_say(const char *message); /* waits until all is out; for messages before and after fedmote runs */

/* flash.c: two package slots. On the part they are flash sectors; where the flash controller does not answer they are
 * the board's ram_slots. Prototypes as in struct fedmote_port. */
void stm32_slots_start(void);
const uint8_t *stm32_slot_base(void *context, uint32_t slot);
int32_t stm32_slot_erase(void *context, uint32_t slot);
int32_t stm32_slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size);

/* entropy.c: for boot nonce and jitter, not for keys. `salt` tells boards apart that start at the same instant. */
void stm32_entropy_start(uint32_t salt);
uint32_t stm32_random(void);

#define STM32_ERROR_FLASH_TIMEOUT (-130)
#define STM32_ERROR_FLASH_REFUSED (-131)
#define STM32_ERROR_ARGUMENT (-132)

#endif
