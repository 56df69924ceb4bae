/* SPDX-License-Identifier: Apache-2.0 */
#include "samples_region.h"

#include <string.h>

#include "crc32.h"
#include "little_endian.h"

#define HEADER_BYTES 16U

int32_t samples_region_open(struct samples_region *samples, const uint8_t *region, uint32_t bytes,
                            uint32_t max_samples) {
    memset(samples, 0, sizeof *samples);
    if (bytes < HEADER_BYTES || memcmp(region, "FMDS", 4) != 0) {
        return FEDMOTE_ERR_MALFORMED;
    }
    const uint32_t count = fedmote_load_u32(region + 4);
    const uint32_t input_bytes = fedmote_load_u32(region + 8);
    /* In 64 bits: neither sum nor product of two 32-bit numbers can overflow. */
    const uint64_t label_bytes = ((uint64_t)count + 3U) & ~(uint64_t)3U;
    const uint64_t sample_bytes = (uint64_t)count * input_bytes;
    const uint64_t room = bytes - HEADER_BYTES;
    if (label_bytes > room || sample_bytes > room - label_bytes) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    if (fedmote_crc32(0U, region + HEADER_BYTES, (uint32_t)(label_bytes + sample_bytes)) !=
        fedmote_load_u32(region + 12)) {
        return FEDMOTE_ERR_CRC;
    }
    samples->labels = region + HEADER_BYTES;
    samples->x = (const int8_t *)(region + HEADER_BYTES + label_bytes);
    samples->count = count < max_samples ? count : max_samples;
    samples->input_bytes = input_bytes;
    samples->size = HEADER_BYTES + (uint32_t)(label_bytes + sample_bytes);
    return FEDMOTE_OK;
}

int32_t samples_region_read(const struct samples_region *samples, uint32_t index, int8_t *x, uint32_t x_bytes,
                            uint32_t *label) {
    if (index >= samples->count || x_bytes != samples->input_bytes) {
        return SAMPLES_REGION_ERROR;
    }
    memcpy(x, samples->x + (size_t)index * x_bytes, x_bytes);
    *label = samples->labels[index];
    return 0;
}
