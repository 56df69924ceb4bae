/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels for Cortex-M cores with the DSP extension (M4, M7, M33) share. Two products are added by one
 * instruction (SMLAD), whose factors are pairs of int16. Bytes become such pairs four at a time: those of places 0 and
 * 2 in one word, 1 and 3 in the next, because that is what one instruction extracts from a word.
 *
 *     four bytes in memory   b0 b1 b2 b3
 *     two words, a group     b0 | b2 << 16,  b1 | b3 << 16
 *
 * Inputs of convolutions and fully connected layers are widened once, into columns of groups, as 2 * (x + 128): the
 * same number of instructions as without the factor, but for one per word. The 128 is made up for by the bias; the 2 is
 * what makes step 1 of src/kernels/requantize.h a single instruction:
 *
 *     product = (2 * sum * multiplier + 2^31) / 2^32                     SMMULR
 *
 * Step 2, which divides by 2^r, multiplies by 2^(32-r) and adds the output's zero point on the way (SMMLAR). Ties are
 * to be rounded away from zero where the instruction rounds them up. A factor of 2^(32-r) + 1 sees to that: it moves
 * every product by less than the distance of two quotients, away from zero. The converter proves this for each channel
 * (host/fedmote/package/arrangement.py) and writes
 *
 *     s32 bias, multiplier, factor     of sums that are doubled, factor > FEDMOTE_DSP_PLAIN, or, where it cannot,
 *     s32 bias, multiplier, shift      for all channels of the operator: sums as they are, requantized step by step.
 */
#ifndef FEDMOTE_DSP_H
#define FEDMOTE_DSP_H

#include <stdbool.h>
#include <string.h>

#include "kernels/requantize.h"

#if !defined(__ARM_FEATURE_DSP)
#error "these kernels need a core with the DSP extension"
#endif

/* Whether the assembly may read words at any address. */
#if defined(__ARM_FEATURE_UNALIGNED)
#define FEDMOTE_DSP_IS_UNALIGNED 1
#else
#define FEDMOTE_DSP_IS_UNALIGNED 0
#endif

/* Words on the stack for what is widened at once; sums of more are done in parts. */
#define FEDMOTE_DSP_WORDS 448U

/* The largest third word of a channel's scaling that is a shift. */
#define FEDMOTE_DSP_PLAIN 30

static inline uint32_t fedmote_dsp_word(const int8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* Step 1 for a doubled sum. */
static inline int32_t fedmote_dsp_product(int32_t doubled, int32_t multiplier) {
    int32_t product;
    __asm("smmulr %0, %1, %2" : "=r"(product) : "r"(doubled), "r"(multiplier));
    return product;
}

/* Step 2 and the zero point. */
static inline int32_t fedmote_dsp_quotient(int32_t product, int32_t factor, int32_t zero_point) {
    int32_t quotient;
    __asm("smmlar %0, %1, %2, %3" : "=r"(quotient) : "r"(product), "r"(factor), "r"(zero_point));
    return quotient;
}

/* The nearest int8. */
static inline int8_t fedmote_dsp_saturated(int32_t x) {
    int32_t saturated;
    __asm("ssat %0, #8, %1" : "=r"(saturated) : "r"(x));
    return (int8_t)saturated;
}

static inline bool fedmote_dsp_is_plain(const uint8_t *scaling) {
    return fedmote_load_s32(scaling + 8) <= FEDMOTE_DSP_PLAIN;
}

/* The output of a sum that holds its bias; `channel`: its scaling. */
static inline int8_t fedmote_dsp_output(int32_t sum, const uint8_t *channel, bool is_plain, int32_t zero_point) {
    const int32_t multiplier = fedmote_load_s32(channel + 4), last = fedmote_load_s32(channel + 8);
    if (is_plain) {
        const int32_t scaled = fedmote_requantize(sum, multiplier, last);
        return fedmote_dsp_saturated(fedmote_wrapping_add(scaled, zero_point));
    }
    return fedmote_dsp_saturated(fedmote_dsp_quotient(fedmote_dsp_product(sum, multiplier), last, zero_point));
}

/* The kernels make outputs within int8; this brings them within the operator's own limits, if it has any. */
static inline void fedmote_dsp_clamp(int8_t *out, uint32_t count, int32_t low, int32_t high) {
    if (low == INT8_MIN && high == INT8_MAX) {
        return;
    }
    for (int8_t *end = out + count; out != end; out++) {
        *out = fedmote_clamp(*out, low, high);
    }
}

/* Columns of sums that are not doubled: halves what was widened. */
static inline void fedmote_dsp_halve(uint32_t *columns, uint32_t words) {
    for (uint32_t *end = columns + words; columns != end; columns++) {
        *columns >>= 1;
    }
}

/* The bytes of a convolution's patch that lie beside each other in the input as in the weights: the taps of a kernel
 * row, or a single tap. In the weights every run begins a group. */
static inline uint32_t fedmote_dsp_runs(const struct fedmote_conv *op) {
    return op->dilation_w == 1U && op->groups == 1U ? 1U : op->kernel_w; /* of a kernel row */
}

static inline uint32_t fedmote_dsp_run_groups(const struct fedmote_conv *op) {
    return (op->kernel_w / fedmote_dsp_runs(op) * op->group_in_c + 3U) / 4U;
}

/* Whether the converter has prepared a depthwise convolution for the kernel of three rows and three taps. */
static inline bool fedmote_dsp_is_3x3(const struct fedmote_conv *op) {
    return op->kernel_h == 3U && op->kernel_w == 3U && op->dilation_h == 1U && op->dilation_w == 1U &&
           op->group_out_c == 1U && op->stride_w <= 2U && op->out_c % 4U == 0U;
}

#endif
