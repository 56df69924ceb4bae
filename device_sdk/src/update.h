/* SPDX-License-Identifier: Apache-2.0
 *
 * The head update as a blob (protocol/SPEC.md, section 6), made on the fly: a few bytes of CBOR, then head - head_base
 * as float32. It is never in memory as a whole; any part of it can be read again at any time.
 */
#ifndef FEDMOTE_UPDATE_H
#define FEDMOTE_UPDATE_H

#include "round.h"

/* Bytes of CBOR in front of the parameters, at most, and where encoding and tag stand among them. */
#define FEDMOTE_UPDATE_PREFIX 11
#define FEDMOTE_UPDATE_ENCODING 2
#define FEDMOTE_UPDATE_TAG 5

/* Writes {1: encoding-f32, 2: 85(bytes)} up to the floats; returns its size. */
uint32_t fedmote_update_prefix(const struct fedmote_round *round, uint8_t out[FEDMOTE_UPDATE_PREFIX]);

/* Bytes of the blob. */
uint32_t fedmote_update_size(const struct fedmote_round *round);

/* Copies blob bytes [offset, offset + size) to `out`; the range lies inside the blob. */
void fedmote_update_read(const struct fedmote_round *round, uint32_t offset, uint8_t *out, uint32_t size);

/* Its checksum in pieces: the CBOR in front, then `count` floats from `first` on.
 * Error: FEDMOTE_ERR_UPDATE_NOT_FINITE where one of them is a NaN or an infinity. */
uint32_t fedmote_update_begin(const struct fedmote_round *round);
FEDMOTE_MUST_CHECK int32_t fedmote_update_extend(const struct fedmote_round *round, uint32_t first, uint32_t count,
                                                 uint32_t *crc);

#endif
