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

/* Cores whose only multiplication is 32 by 32 to 32 bits, where a compiler calls a function for the 64 bits. */
#ifndef FEDMOTE_HAS_LONG_MULTIPLY
#if defined(__ARM_ARCH_ISA_THUMB) && __ARM_ARCH_ISA_THUMB == 1
#define FEDMOTE_HAS_LONG_MULTIPLY 0
#else
#define FEDMOTE_HAS_LONG_MULTIPLY 1
#endif
#endif

/* Step 1 in 64 bits. multiplier >= 0, so the result is above INT32_MIN. */
static inline int32_t fedmote_high_product_64(int32_t x, int32_t multiplier) {
    return (int32_t)(((int64_t)x * multiplier + (INT64_C(1) << 30)) >> 31);
}

/* Step 1 in four products of 32 bits. With x = a 2^16 + b, where b has 16 bits and a sign, and multiplier = c 2^15 + d,
 * where neither has, it is
 *
 *     floor((ac 2^31 + ad 2^16 + bc 2^15 + bd + 2^30) / 2^31)
 *         = ac + floor((ad + floor((bc + floor(bd / 2^15)) / 2) + 2^14) / 2^15)
 *
 * and nothing overflows: |bc| and |bd / 2^15| stay below 2^31 together, half of that and |ad| likewise, as b is
 * negative where a is 2^15. */
static inline int32_t fedmote_high_product_32(int32_t x, int32_t multiplier) {
    const int32_t a = ((x >> 15) + 1) >> 1, b = (int16_t)x;
    const int32_t c = multiplier >> 15, d = multiplier & 0x7FFF;
    const int32_t middle = a * d + ((b * c + (b * d >> 15)) >> 1);
    return a * c + (((middle >> 14) + 1) >> 1);
}

static inline int32_t fedmote_high_product(int32_t x, int32_t multiplier) {
    return FEDMOTE_HAS_LONG_MULTIPLY ? fedmote_high_product_64(x, multiplier) : fedmote_high_product_32(x, multiplier);
}

/* Step 2: x / 2^right. Taking 1 from negative numbers turns "ties away from zero" into "ties up". 1 <= right <= 31, and
 * x is what step 1 makes: between INT32_MIN and INT32_MAX - 1, both excluded, so neither 1 overflows. */
static inline int32_t fedmote_rounding_shift(int32_t x, int32_t right) {
    /* cppcheck-suppress shiftTooManyBitsSigned ; -1 where x is negative, see fedmote_shift_keeps_the_sign */
    return (((x + (x >> 31)) >> (right - 1)) + 1) >> 1;
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
