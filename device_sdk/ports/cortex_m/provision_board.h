/* SPDX-License-Identifier: Apache-2.0
 *
 * A board without an identity waits for one on its serial line, where board.toml says is_provisioned.
 */
#ifndef FEDMOTE_CORTEX_M_PROVISION_BOARD_H
#define FEDMOTE_CORTEX_M_PROVISION_BOARD_H

#include "fedmote/fedmote_port.h"

/* Waits for ever, with the device's own port and arena; returns when the identity is in its region. Meanwhile it calls
 * `say` with `status` once a second, between frames: there may be a person at the other end. Errors: those of
 * fedmote_provision_begin(). */
int32_t provision_board(const struct fedmote_port *port, uint8_t *arena, uint32_t arena_bytes,
                        void (*say)(int32_t status), int32_t status);

#endif
