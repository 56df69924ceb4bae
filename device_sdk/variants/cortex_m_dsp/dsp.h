/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels for Cortex-M cores with the DSP extension (M4, M7, M33) share. Two products are added by one
 * instruction (SMLAD), whose factors are pairs of int16. Bytes become such pairs four at a time: those of places 0 and
 * 2 in one word, 1 and 3 in the next, because that is what one instruction (SXTB16, SXTAB16) extracts from a word.
 *
 *     four bytes in memory   b0 b1 b2 b3
 *     two words, a group     b0 | b2 << 16,  b1 | b3 << 16
 *
 * Inputs are widened once into columns of groups; weights are widened on the way.
 * Nothing here needs numbers that the portable kernels do not have, and every byte of their outputs is the same.
 */
#ifndef FEDMOTE_DSP_H
#define FEDMOTE_DSP_H

#include <string.h>

#include "kernels/requantize.h"

#if !defined(__ARM_FEATURE_DSP) || !defined(__ARM_FEATURE_UNALIGNED)
#error "these kernels need a core with the DSP extension and words read at any address"
#endif

/* Words on the stack for what is widened at once; sums of more are done in parts. A multiple of 4. */
#define FEDMOTE_DSP_WORDS 448U

static inline uint32_t fedmote_dsp_word(const int8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* Bytes 0 and 2 of a word, sign-extended; and bytes 1 and 3. */
static inline uint32_t fedmote_dsp_even(uint32_t word) {
    uint32_t pair;
    __asm("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

static inline uint32_t fedmote_dsp_odd(uint32_t word) {
    uint32_t pair;
    __asm("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}

/* The same value in both halves. */
static inline uint32_t fedmote_dsp_twice(int32_t value) {
    const uint32_t half = (uint32_t)value & 0xFFFFU;
    return half | half << 16;
}

/* Byte `place` of a column of groups `step` words apart. */
static inline uint8_t *fedmote_dsp_place(uint32_t *column, uint32_t step, uint32_t place) {
    return (uint8_t *)(column + place / 4U * step + (place & 1U)) + (place & 2U);
}

/* Widens x[0..count) into the places from `place` on. */
static inline void fedmote_dsp_widen(uint32_t *column, uint32_t step, uint32_t place, const int8_t *x, uint32_t count) {
    const int8_t *end = x + count;
    if (place % 4U == 0U) {
        uint32_t *to = column + place / 4U * step;
        const int8_t *stop = x + (count & ~3U);
        place += count & ~3U;
        for (; x != stop; x += 4, to += step) {
            const uint32_t word = fedmote_dsp_word(x);
            to[0] = fedmote_dsp_even(word);
            to[1] = fedmote_dsp_odd(word);
        }
    }
    for (; x != end; x++, place++) {
        const int16_t value = *x;
        memcpy(fedmote_dsp_place(column, step, place), &value, sizeof value);
    }
}

static inline int32_t fedmote_dsp_value(uint32_t *column, uint32_t step, uint32_t place) {
    int16_t value;
    memcpy(&value, fedmote_dsp_place(column, step, place), sizeof value);
    return value;
}

/* What makes outputs of sums: the constants of the next output channel, and the outputs' zero point. */
struct fedmote_dsp_ending {
    const uint8_t *channel;
    int32_t zero_point;
};

static inline struct fedmote_dsp_ending fedmote_dsp_ending_at(const struct fedmote_scaling *scaling, uint32_t c) {
    const struct fedmote_dsp_ending ending = {scaling->channels + FEDMOTE_SCALING_BYTES * c, scaling->zero_point};
    return ending;
}

/* The functions below make outputs within int8; this one brings them within the operator's own limits, if it has any.
 */
static inline void fedmote_dsp_clamp(int8_t *out, uint32_t count, const struct fedmote_scaling *scaling) {
    if (scaling->low == INT8_MIN && scaling->high == INT8_MAX) {
        return;
    }
    for (int8_t *end = out + count; out != end; out++) {
        *out = fedmote_clamp(*out, scaling->low, scaling->high);
    }
}

/* sums[c * 2 + p] += products of `groups` groups of the rows w and w + stride (c) with two columns (p) whose groups
 * take turns: step 4 words, the second column 2 words behind the first. groups > 0. */
void fedmote_dsp_dot_2x2(int32_t *sums, const uint32_t *columns, const int8_t *w, uint32_t stride, uint32_t groups);

/* sums[c] += products of `groups` groups of the rows w + c * stride, c < 4, with one column, step 2. groups > 0. */
void fedmote_dsp_dot_4x1(int32_t *sums, const uint32_t *column, const int8_t *w, uint32_t stride, uint32_t groups);

/* The taps of a depthwise patch. Gaps: from behind the last tap of a row to the first of the next. */
struct fedmote_dsp_taps {
    int32_t first[4]; /* what the sums begin with */
    uint32_t x_tap_step, w_tap_step;
    uint32_t taps; /* of a row, > 0 */
    uint32_t x_gap, w_gap;
    uint32_t rows; /* > 0 */
};

/* sums[c] = taps->first[c] + products of all taps for the channels c < 4, which lie beside each other. */
void fedmote_dsp_depthwise_4(int32_t *sums, const int8_t *x, const int8_t *w, const struct fedmote_dsp_taps *taps);

/* Outputs of two channels at two positions: out0[c] of sums[2 * c], out1[c] of sums[2 * c + 1]. Moves the ending on by
 * two channels. */
void fedmote_dsp_finish_2x2(const int32_t *sums, struct fedmote_dsp_ending *ending, int8_t *out0, int8_t *out1);

/* Outputs of `count` channels, out[c] of sums[c]; moves the ending on. count > 0. */
void fedmote_dsp_finish(const int32_t *sums, struct fedmote_dsp_ending *ending, int8_t *out, uint32_t count);

#endif
