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

/* While the head works the encoder rests, and of its memory only the features count: the head's scratch memory lies in
 * front of them, or else behind. Only an encoder smaller than that grows by it. */
static uint32_t place_encoder(uint64_t *end, const struct fedmote_package *package,
                              const struct fedmote_arithmetic *arithmetic, uint32_t *scratch) {
    const uint64_t bytes = fedmote_head_scratch_bytes(&package->head_shape, arithmetic);
    const uint64_t behind = round_16((uint64_t)package->feature_offset + package->feature_count);
    const uint64_t at = package->feature_offset >= bytes ? 0U : behind;
    const uint64_t needed = at + bytes;
    *scratch = saturated(*end + at);
    return place(end, package->encoder_bytes > needed ? package->encoder_bytes : needed);
}

uint32_t fedmote_link_bytes(void) { return 2U * (uint32_t)round_16(FEDMOTE_BODY_MAX + 128U); }

int32_t fedmote_layout_compute(struct fedmote_layout *layout, const struct fedmote_package *package,
                               const struct fedmote_arithmetic *arithmetic, uint32_t sample_count,
                               uint32_t arena_bytes) {
    if (sample_count == 0U) {
        return FEDMOTE_ERR_NO_SAMPLES;
    }
    if (sample_count > FEDMOTE_SAMPLES_MAX) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    uint64_t end = 0;
    layout->receive = place(&end, fedmote_link_bytes() / 2U);
    layout->transmit = place(&end, fedmote_link_bytes() / 2U);
    layout->encoder = place_encoder(&end, package, arithmetic, &layout->scratch);
    layout->head = place(&end, (uint64_t)arithmetic->parameter_bytes * package->head_parameters);
    layout->head_base = place(&end, UINT64_C(4) * package->head_parameters);
    layout->velocity = place(&end, UINT64_C(4) * package->head_parameters);
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
