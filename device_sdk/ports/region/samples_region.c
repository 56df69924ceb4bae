/* SPDX-License-Identifier: Apache-2.0 */
#include "samples_region.h"

#include <string.h>

#define HEADER_BYTES 16U

static uint32_t read_u32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* CRC-32 as in protocol/SPEC.md, by half bytes: once per start, so a table of 16 words is enough. */
static uint32_t region_crc(const uint8_t *bytes, uint32_t size) {
    static const uint32_t table[16] = {
        0x00000000U, 0x1DB71064U, 0x3B6E20C8U, 0x26D930ACU, 0x76DC4190U, 0x6B6B51F4U, 0x4DB26158U, 0x5005713CU,
        0xEDB88320U, 0xF00F9344U, 0xD6D6A3E8U, 0xCB61B38CU, 0x9B64C2B0U, 0x86D3D2D4U, 0xA00AE278U, 0xBDBDF21CU,
    };
    uint32_t crc = UINT32_MAX;
    for (uint32_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        crc = crc >> 4 ^ table[crc & 15U];
        crc = crc >> 4 ^ table[crc & 15U];
    }
    return ~crc;
}

int32_t samples_region_open(struct samples_region *samples, const uint8_t *region, uint32_t bytes, uint32_t max_samples) {
    memset(samples, 0, sizeof *samples);
    if (bytes < HEADER_BYTES || memcmp(region, "FMDS", 4) != 0) {
        return FEDMOTE_ERR_MALFORMED;
    }
    const uint32_t count = read_u32(region + 4);
    const uint32_t input_bytes = read_u32(region + 8);
    /* In 64 bits: neither sum nor product of two 32-bit numbers can overflow. */
    const uint64_t label_bytes = ((uint64_t)count + 3U) & ~(uint64_t)3U;
    const uint64_t sample_bytes = (uint64_t)count * input_bytes;
    const uint64_t room = bytes - HEADER_BYTES;
    if (label_bytes > room || sample_bytes > room - label_bytes) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    if (region_crc(region + HEADER_BYTES, (uint32_t)(label_bytes + sample_bytes)) != read_u32(region + 12)) {
        return FEDMOTE_ERR_CRC;
    }
    samples->labels = region + HEADER_BYTES;
    samples->x = (const int8_t *)(region + HEADER_BYTES + label_bytes);
    samples->count = count < max_samples ? count : max_samples;
    samples->input_bytes = input_bytes;
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
