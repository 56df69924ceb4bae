/* SPDX-License-Identifier: Apache-2.0 */
#include "requantize.h"

void fedmote_scale(int8_t *out, const struct fedmote_scaling *scaling, uint32_t first, const int32_t *sums,
                   uint32_t count) {
    const uint8_t *channel = scaling->channels + FEDMOTE_SCALING_BYTES * first;
    /* Copies, since a store to out[] may alias the struct for all that the compiler knows. */
    const int32_t zero_point = scaling->zero_point, low = scaling->low, high = scaling->high;
    for (uint32_t j = 0; j < count; j++, channel += FEDMOTE_SCALING_BYTES) {
        const int32_t sum = fedmote_wrapping_add(sums[j], fedmote_load_s32(channel));
        const int32_t scaled = fedmote_requantize(sum, fedmote_load_s32(channel + 4), fedmote_load_s32(channel + 8));
        out[j] = fedmote_clamp(fedmote_wrapping_add(scaled, zero_point), low, high);
    }
}
