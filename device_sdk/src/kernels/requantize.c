/* SPDX-License-Identifier: Apache-2.0 */
#include "requantize.h"

void fedmote_scale(int8_t *out, const struct fedmote_scaling *scaling, uint32_t first, const int32_t *sums,
                   uint32_t count) {
    /* 4-aligned, since constants are 16-aligned in the package. */
    const int32_t *channel = (const int32_t *)(const void *)(scaling->channels + FEDMOTE_SCALING_BYTES * first);
    /* Copies, since a store to out[] may alias the struct for all that the compiler knows. */
    const int32_t zero_point = scaling->zero_point, low = scaling->low, high = scaling->high;
    for (const int8_t *end = out + count; out != end; channel += 3) {
        const int32_t scaled = fedmote_requantize(fedmote_wrapping_add(*sums++, channel[0]), channel[1], channel[2]);
        *out++ = fedmote_clamp(fedmote_wrapping_add(scaled, zero_point), low, high);
    }
}
