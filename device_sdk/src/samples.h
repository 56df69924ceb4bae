/* SPDX-License-Identifier: Apache-2.0
 *
 * The selected samples as a blob (protocol/SPEC.md, section 6), made on the fly from the port's samples: a few bytes of
 * CBOR, then a record per sample of the partner's group. The encoder's input is the buffer for the sample that is being
 * read, which costs an inference that is under way; with all embeddings cached there is none.
 */
#ifndef FEDMOTE_SAMPLES_H
#define FEDMOTE_SAMPLES_H

#include "round.h"

/* How many samples a blob can hold: its size has 32 bits, and a port may read large samples from a card. */
uint32_t fedmote_samples_most(const struct fedmote_round *round);

/* Bytes of the blob. */
uint32_t fedmote_samples_size(const struct fedmote_round *round);

/* Copies blob bytes [offset, offset + size) to `out`; the range lies inside the blob. Error: FEDMOTE_ERR_SAMPLE_IO. */
FEDMOTE_MUST_CHECK int32_t fedmote_samples_read(struct fedmote_round *round, uint32_t offset, uint8_t *out,
                                                uint32_t size);

/* Its checksum in pieces: the CBOR in front, then the record of each sample, which lies in the encoder's input. */
uint32_t fedmote_samples_begin(struct fedmote_round *round);
uint32_t fedmote_samples_extend(struct fedmote_round *round, uint32_t sample, uint32_t crc);

#endif
