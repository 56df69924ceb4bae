/* SPDX-License-Identifier: Apache-2.0
 *
 * fedmote: federated learning for microcontrollers, the whole API of the device.
 *
 * The caller owns all memory: one `struct fedmote`, one arena, one port. Nothing is allocated, nothing blocks, nothing is
 * printed, and there is no state outside the struct. Typical use:
 *
 *     static struct fedmote device;
 *     static uint8_t arena[49152] __attribute__((aligned(16)));
 *
 *     struct fedmote_identity identity = {.id = "board-1", .site = "lab", .link = &fedmote_serial_link};
 *     if (fedmote_init(&device, &port, &identity, arena, sizeof arena) != FEDMOTE_OK) { ... }
 *     for (;;) {
 *         if (fedmote_step(&device) == FEDMOTE_IDLE) { sleep until the UART or a timer wakes }
 *     }
 *
 * Statuses: 0 is success, negative values are errors (enum fedmote_status of fedmote_schema.h), positive values are
 * results. A status must not be ignored.
 */
#ifndef FEDMOTE_H
#define FEDMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "fedmote/fedmote_config.h"
#include "fedmote/fedmote_port.h"
#include "fedmote/fedmote_schema.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FEDMOTE_MUST_CHECK __attribute__((warn_unused_result))
#else
#define FEDMOTE_MUST_CHECK
#endif

#define FEDMOTE_VERSION "0.1.0"
#define FEDMOTE_IDLE 1 /* fedmote_step(): nothing to do until bytes arrive or wake_ms has passed */
#define FEDMOTE_BUSY 2 /* there is more to do: call again */
