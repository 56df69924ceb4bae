/* SPDX-License-Identifier: Apache-2.0
 *
 * What a chip lends to the start-up and the programs of this folder, which are the same on every Cortex-M. Each port of
 * a chip defines these; the counters only where an emulator can run the chip by an instruction-driven clock.
 */
#ifndef FEDMOTE_CHIP_H
#define FEDMOTE_CHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "fedmote/fedmote_port.h"

/* Clock, serial line and, in the federated device, the tick; before chip_port and chip_sleep(). */
void chip_start(void);

/* The serial line: stream_read and stream_write, nothing else. */
extern const struct fedmote_port chip_port;

/* Until an interrupt, if the chip has started any. */
void chip_sleep(void);

/* What a board shows for ever after a fault. */
__attribute__((noreturn)) void chip_halt(void);

/* What the federated device takes besides (device_main.c). Milliseconds since some moment, modulo 2^32, with an
 * interrupt each; a word that is hard to foretell, of a generator or of a fine timer. */
uint32_t chip_now_ms(void);
uint32_t chip_noise(void);

/* The flash controller. chip_flash_start(): whether it answers. Erases the sectors from a region's address on that hold
 * so many bytes; writes whole words, from anywhere. 0, or one of these errors, after which the controller is locked
 * again. */
bool chip_flash_start(void);
int32_t chip_flash_erase(uintptr_t address, uint32_t bytes);
int32_t chip_flash_write(uintptr_t address, const uint8_t *bytes, uint32_t size);
#define CHIP_ERROR_FLASH_TIMEOUT (-130)
#define CHIP_ERROR_FLASH_REFUSED (-131)

/* Two counters with 32 bits, which count up at the rates counter0_hz and counter1_hz of board.toml. */
#define CHIP_COUNTERS 2U
void chip_counters_start(void);
uint32_t chip_counter(uint32_t counter);

#endif
