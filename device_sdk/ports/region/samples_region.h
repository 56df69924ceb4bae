/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader of a samples region (protocol/SPEC.md, section 8): what the flash of a board, or a file, holds of labelled
 * samples. It serves the port callbacks sample_count and sample_read of boards that keep their data in this form.
 */
#ifndef FEDMOTE_SAMPLES_REGION_H
#define FEDMOTE_SAMPLES_REGION_H

#include "fedmote/fedmote.h"

struct samples_region {
    const uint8_t *labels; /* u8[count], borrowed */
    const int8_t *x;       /* s8[count][input_bytes], borrowed */
    uint32_t count;
    uint32_t input_bytes;
    uint32_t size; /* bytes of the region that these samples take */
};

/* Finds the samples in at most `bytes` bytes at `region`, which is borrowed; at most `max_samples` of them are shown.
 * On an error `samples` is empty. Errors: FEDMOTE_ERR_MALFORMED without the magic, FEDMOTE_ERR_TRUNCATED where the
 * region is shorter than what it announces, FEDMOTE_ERR_CRC. */
FEDMOTE_MUST_CHECK int32_t samples_region_open(struct samples_region *samples, const uint8_t *region, uint32_t bytes,
                                               uint32_t max_samples);

/* As port->sample_read. Returns 0, or SAMPLES_REGION_ERROR for an index or a size that the region does not have. */
#define SAMPLES_REGION_ERROR (-160)
FEDMOTE_MUST_CHECK int32_t samples_region_read(const struct samples_region *samples, uint32_t index, int8_t *x,
                                               uint32_t x_bytes, uint32_t *label);

#endif
