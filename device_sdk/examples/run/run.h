/* SPDX-License-Identifier: Apache-2.0
 *
 * Inference without federation: every sample of a samples region through a package's encoder and head. Shared by the
 * programs behind `fedmote run`.
 */
#ifndef FEDMOTE_RUN_H
#define FEDMOTE_RUN_H

#include "package.h"
#include "samples_region.h"

/* Takes the result of one sample: s8[feature_count], then f32[head_outputs], `size` bytes in all. 0, or an error that
 * ends the run. */
typedef int32_t (*run_emit)(void *context, const uint8_t *result, uint32_t size);

/* Runs all samples. `memory` is 16-aligned and holds encoder, scratch and one result. Errors: those of
 * fedmote_package_open(); FEDMOTE_ERR_ARENA where memory_bytes is too small; FEDMOTE_ERR_SAMPLE_IO where the samples
 * have another size than the package's input; what `emit` returned. */
FEDMOTE_MUST_CHECK int32_t run_samples(const uint8_t *package_bytes, uint32_t package_size,
                                       const struct samples_region *samples, uint8_t *memory, uint32_t memory_bytes,
                                       run_emit emit, void *context);

#endif
