/* SPDX-License-Identifier: Apache-2.0
 *
 * From int32 sums to int8 outputs, as TensorFlow Lite Micro does it: two roundings, one after the other.
 *
 *     1. product = round(x * multiplier / 2^31)      ties towards plus infinity
 *     2. result  = round(product / 2^-shift)         ties away from zero; for shift < 0
 *
 * (its SaturatingRoundingDoublingHighMul and RoundingDivideByPOT; the build of the peer with TFLITE_SINGLE_ROUNDING is
 * another arithmetic). The peer writes step 1 as a truncating division of a nudged product: for both signs
 * that is floor((x * multiplier + 2^30) / 2^31), one add and one shift. Its saturation is needed only for INT32_MIN
 * times INT32_MIN, and the package reader refuses negative multipliers.
 *
 * Where the peer's sums would overflow (absurd scales), they wrap in practice; here they wrap by definition.
 */
#ifndef FEDMOTE_REQUANTIZE_H
#define FEDMOTE_REQUANTIZE_H

#include <stdint.h>

#include "../little_endian.h"
#include "kernels.h"

/* Right shifts of negative numbers are the compiler's choice; all compilers for our targets keep the sign. */
typedef char fedmote_shift_keeps_the_sign[(-1 >> 1) == -1 ? 1 : -1];

static inline int32_t fedmote_wrapping_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

/* Step 1. multiplier >= 0, so the result is above INT32_MIN. */
static inline int32_t fedmote_high_product(int32_t x, int32_t multiplier) {
    return (int32_t)(((int64_t)x * multiplier + (INT64_C(1) << 30)) >> 31);
}

/* Step 2: x / 2^right. Taking 1 from negative numbers turns "ties away from zero" into "ties up", which is the last bit
 * shifted out. 1 <= right <= 31, x > INT32_MIN. */
static inline int32_t fedmote_rounding_shift(int32_t x, int32_t right) {
    const int32_t doubled = (x - (x < 0)) >> (right - 1);
    return (doubled >> 1) + (doubled & 1);
}

/* x * multiplier * 2^(shift - 31). multiplier >= 0, -31 <= shift <= 30. */
static inline int32_t fedmote_requantize(int32_t x, int32_t multiplier, int32_t shift) {
    if (shift < 0) {
        return fedmote_rounding_shift(fedmote_high_product(x, multiplier), -shift);
    }
    return fedmote_high_product((int32_t)((uint32_t)x << (uint32_t)shift), multiplier);
}

static inline int8_t fedmote_clamp(int32_t x, int32_t low, int32_t high) {
    return (int8_t)(x < low ? low : x > high ? high : x);
}

/* What makes outputs of sums. */
struct fedmote_scaling {
    const uint8_t *channels; /* bias, multiplier, shift of each, in the package */
    int32_t zero_point, low, high;
};

static inline struct fedmote_scaling fedmote_scaling_of(const struct fedmote_channels *channels, const uint8_t *weights,
                                                        int32_t zero_point, int32_t low, int32_t high) {
    const struct fedmote_scaling scaling = {weights + channels->scaling, zero_point, low, high};
    return scaling;
}

/* Outputs of the channels first to first + count - 1 for their sums of products. out s8[count], sums s32[count]. */
void fedmote_scale(int8_t *out, const struct fedmote_scaling *scaling, uint32_t first, const int32_t *sums,
                   uint32_t count);

#endif
