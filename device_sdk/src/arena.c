/* SPDX-License-Identifier: Apache-2.0 */
#include "arena.h"

/* Sums are kept in 64 bits and end at UINT32_MAX: a package from a stranger may ask for more than there is. */
static uint32_t saturated(uint64_t bytes) { return bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)bytes; }

static uint64_t round_16(uint64_t bytes) { return (bytes + 15U) & ~UINT64_C(15); }

/* The offset of a region of `bytes` at `*end`, which moves behind it. */
static uint32_t place(uint64_t *end, uint64_t bytes) {
    const uint64_t offset = *end;
    *end = offset + round_16(bytes);
    return saturated(offset);
}

uint32_t fedmote_link_bytes(void) { return 2U * (uint32_t)round_16(FEDMOTE_BODY_MAX + 128U); }

int32_t fedmote_layout_compute(struct fedmote_layout *layout, const struct fedmote_package *package,
                               uint32_t sample_count, uint32_t arena_bytes) {
    if (sample_count == 0U) {
        return FEDMOTE_ERR_NO_SAMPLES;
    }
    if (sample_count > FEDMOTE_SAMPLES_MAX) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    const uint64_t parameter_bytes = UINT64_C(4) * package->head_parameters;
    uint64_t end = 0;
    layout->receive = place(&end, fedmote_link_bytes() / 2U);
    layout->transmit = place(&end, fedmote_link_bytes() / 2U);
    layout->encoder = place(&end, package->encoder_bytes);
    layout->head = place(&end, parameter_bytes);
    layout->head_base = place(&end, parameter_bytes);
    layout->velocity = place(&end, parameter_bytes);
    layout->scratch = place(&end, UINT64_C(4) * ((uint64_t)package->feature_count + package->head_outputs));
    layout->samples = place(&end, UINT64_C(12) * sample_count);
    const uint64_t required = end;
    layout->required = saturated(required);
    layout->cache = place(&end, (uint64_t)sample_count * package->feature_count);
    layout->total = saturated(end);
    if (required > arena_bytes) {
        layout->cached = 0;
        return FEDMOTE_ERR_ARENA;
    }
    const uint32_t fitting = (arena_bytes - layout->cache) / package->feature_count;
    layout->cached = fitting < sample_count ? fitting : sample_count;
    return FEDMOTE_OK;
}
