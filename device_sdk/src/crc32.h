/* SPDX-License-Identifier: Apache-2.0
 *
 * CRC-32/ISO-HDLC, the one of zlib, Ethernet and PNG.
 */
#ifndef FEDMOTE_CRC32_H
#define FEDMOTE_CRC32_H

#include <stdint.h>

/* Continues `crc`, 0 at the beginning, over `size` bytes: crc32(crc32(0, a), b) is the checksum of a followed by b. */
uint32_t fedmote_crc32(uint32_t crc, const uint8_t *bytes, uint32_t size);

#endif
