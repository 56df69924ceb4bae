/* SPDX-License-Identifier: Apache-2.0
 *
 * Weights of four bits, two to a byte, the first in the low half. A channel may begin in the middle of a byte.
 */
#ifndef FEDMOTE_INT4_H
#define FEDMOTE_INT4_H

#include <stdint.h>

static inline int32_t fedmote_int4_low(uint8_t pair) { return (int32_t)((pair & 15U) ^ 8U) - 8; }
static inline int32_t fedmote_int4_high(uint8_t pair) { return (int32_t)(((uint32_t)pair >> 4) ^ 8U) - 8; }

static inline int32_t fedmote_int4_at(const uint8_t *w, uint32_t index) {
    return index % 2U == 0U ? fedmote_int4_low(w[index / 2U]) : fedmote_int4_high(w[index / 2U]);
}

/* Sum over i < n of x[i] times weight first + i. */
int32_t fedmote_int4_dot(const int8_t *x, const uint8_t *w, uint32_t first, uint32_t n);

/* Sum of the weights first to first + n - 1. */
int32_t fedmote_int4_sum(const uint8_t *w, uint32_t first, uint32_t n);

#endif
