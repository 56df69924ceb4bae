/* SPDX-License-Identifier: Apache-2.0
 *
 * A board without an identity gets one over its serial line (protocol/SPEC.md, section 14). Call it in the place of
 * fedmote_init(), with the arena that the device takes afterwards; linked where it is called (src/provision.c):
 *
 *     if (fedmote_identity_read(&identity, text, region, region_bytes) != FEDMOTE_OK &&
 *         fedmote_provision_begin(&provisioning, arena, sizeof arena) == FEDMOTE_OK) {
 *         while (fedmote_provision_step(arena) != FEDMOTE_OK) { sleep until the UART or a tick wakes }
 *         read the identity again, and go on
 *     }
 */
#ifndef FEDMOTE_PROVISION_H
#define FEDMOTE_PROVISION_H

#include "fedmote/fedmote.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Room for an identity region: 12 bytes and the longest map, in units of 8 bytes. */
#define FEDMOTE_IDENTITY_REGION_BYTES 336U

/* Borrowed until the identity is there. */
struct fedmote_provisioning {
    const struct fedmote_port *port; /* context, now_ms, random, stream_read and stream_write are used */
    const char *board;               /* 1 to 32 of [a-z0-9-] */
    const uint8_t *region;           /* where the identity will be, readable in place; erased bytes as of a slot */
    uint32_t region_bytes;
    /* As slot_write of a port: at multiples of 8, each byte once, from RAM. Returns 0 or an error. */
    int32_t (*write)(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size);
};

/* Prepares `arena` (16-aligned, at least FEDMOTE_PROVISION_BYTES) for it. Errors: FEDMOTE_ERR_ARGUMENT for a missing
 * callback or an arena that is not aligned, FEDMOTE_ERR_ARENA for one that is too small. */
FEDMOTE_MUST_CHECK int32_t fedmote_provision_begin(const struct fedmote_provisioning *provisioning, uint8_t *arena,
                                                   uint32_t arena_bytes);
#define FEDMOTE_PROVISION_BYTES (2U * (FEDMOTE_BODY_MAX + 144U) + FEDMOTE_IDENTITY_REGION_BYTES + 768U)

/* Hears a frame or says one; one write of flash at the end. Returns FEDMOTE_BUSY or FEDMOTE_IDLE; FEDMOTE_OK once the
 * identity is in the region, was read back and has been acknowledged: the arena is wiped then. Never gives up. */
int32_t fedmote_provision_step(uint8_t *arena);

#ifdef __cplusplus
}
#endif

#endif
