/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading little-endian numbers out of bytes. Byte by byte, so that neither alignment nor the byte order of the core
 * nor the aliasing rules of C matter; compilers make one load of it where the core allows unaligned ones.
 */
#ifndef FEDMOTE_LITTLE_ENDIAN_H
#define FEDMOTE_LITTLE_ENDIAN_H

#include <stdint.h>

static inline uint32_t fedmote_load_u16(const uint8_t *bytes) { return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8; }

static inline uint32_t fedmote_load_u32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Every compiler for the targets of this SDK converts modulo 2^32, as C23 demands. */
static inline int32_t fedmote_load_s32(const uint8_t *bytes) { return (int32_t)fedmote_load_u32(bytes); }

#endif
