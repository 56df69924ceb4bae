/* SPDX-License-Identifier: Apache-2.0
 *
 * Inference without federation: packages one behind the other, each with its own samples, every sample through the
 * package's encoder and head. Shared by the programs behind `fedmote run`.
 */
#ifndef FEDMOTE_RUN_H
#define FEDMOTE_RUN_H

#include "package.h"
#include "samples_region.h"

/* Takes the result of one sample: s8[feature_count], then f32[outputs of the head], `size` bytes in all. 0, or an error
 * that ends the run. */
typedef int32_t (*run_emit)(void *context, const uint8_t *result, uint32_t size);

/* Where something lies in flash or in a file. */
struct run_region {
    const uint8_t *bytes; /* 16-aligned, borrowed */
    uint32_t size;
};

/* Runs the first package over the first samples of the other region, the second over the second, and so on, until no
 * samples follow; each begins at a multiple of 16. `memory` is 16-aligned and holds encoder, scratch and one result.
 * Errors: those of samples_region_open() for the first samples and of fedmote_package_open() for any package;
 * FEDMOTE_ERR_ARENA where memory_bytes is too small; FEDMOTE_ERR_SAMPLE_IO where samples have another size than the
 * package's input; what `emit` returned. */
FEDMOTE_MUST_CHECK int32_t run_packages(struct run_region packages, struct run_region samples, uint8_t *memory,
                                        uint32_t memory_bytes, run_emit emit, void *context);

#endif
