/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights of four bits, two to a byte, the first in the low half. A channel may begin in the middle of a byte.
 */
#ifndef FEDMOTE_INT4_H
#define FEDMOTE_INT4_H

#include <stdint.h>

/* Shifts that keep the sign (requantize.h checks that they do): one bit-field instruction where a core has it. */
static inline int32_t fedmote_int4_low(uint8_t pair) { return (int8_t)(uint8_t)(pair << 4) >> 4; }
static inline int32_t fedmote_int4_high(uint8_t pair) { return (int8_t)pair >> 4; }

static inline int32_t fedmote_int4_at(const uint8_t *w, uint32_t index) {
    return index % 2U == 0U ? fedmote_int4_low(w[index / 2U]) : fedmote_int4_high(w[index / 2U]);
}

/* Sum over i < n of x[i] times weight first + i. */
int32_t fedmote_int4_dot(const int8_t *x, const uint8_t *w, uint32_t first, uint32_t n);

/* The same for four outputs, which share each pair of inputs that is loaded: sums[j] += sum over i < n of x[i] times
 * weight first + j * stride + i. `stride` is even, so that all four begin in the same half of a byte. */
void fedmote_int4_dot_4(int32_t *sums, const int8_t *x, const uint8_t *w, uint32_t first, uint32_t stride, uint32_t n);

/* Sum of the weights first to first + n - 1. */
int32_t fedmote_int4_sum(const uint8_t *w, uint32_t first, uint32_t n);

#endif
