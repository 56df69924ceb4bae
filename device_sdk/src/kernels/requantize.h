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

/* x * multiplier * 2^(shift - 31). multiplier >= 0, -31 <= shift <= 30. */
static inline int32_t fedmote_requantize(int32_t x, int32_t multiplier, int32_t shift) {
    const uint32_t left = shift > 0 ? (uint32_t)shift : 0U;
    const uint32_t right = shift > 0 ? 0U : (uint32_t)-shift;
    const int64_t product = (int64_t)(int32_t)((uint32_t)x << left) * multiplier;
    const int32_t high = (int32_t)((product + (INT64_C(1) << 30)) >> 31);
    const int32_t mask = (int32_t)((UINT32_C(1) << right) - 1U);
    const int32_t threshold = (mask >> 1) + (high < 0);
    return (high >> right) + ((high & mask) > threshold);
}

static inline int8_t fedmote_clamp(int32_t x, int32_t low, int32_t high) {
    return (int8_t)(x < low ? low : x > high ? high : x);
}

/* The output of channel `c` for the sum of its products. */
static inline int8_t fedmote_channel_output(const struct fedmote_channels *channels, const uint8_t *weights, uint32_t c,
                                            int32_t sum, int32_t zero_point, int32_t low, int32_t high) {
    const int32_t bias = fedmote_load_s32(weights + channels->bias + 4U * c);
    const int32_t multiplier = fedmote_load_s32(weights + channels->multiplier + 4U * c);
    const int32_t shift = fedmote_load_s32(weights + channels->shift + 4U * c);
    const int32_t scaled = fedmote_requantize(fedmote_wrapping_add(sum, bias), multiplier, shift);
    return fedmote_clamp(fedmote_wrapping_add(scaled, zero_point), low, high);
}

#endif
