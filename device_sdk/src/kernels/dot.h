/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of conv-2d and fully-connected. Four outputs share each input byte that is loaded: that makes three
 * instructions per multiply-accumulate on a Cortex-M4 and still fits into its registers.
 */
#ifndef FEDMOTE_DOT_H
#define FEDMOTE_DOT_H

#include <stdint.h>

/* sums[j] += sum over i of (x[i] - zero_point) * w[j * stride + i], for j in 0..3. x s8[n]. */
static inline void fedmote_dot_4(int32_t sums[4], const int8_t *x, int32_t zero_point, const int8_t *w, uint32_t stride,
                                 uint32_t n) {
    const int8_t *w0 = w, *w1 = w + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (const int8_t *end = x + n; x != end; x++) {
        const int32_t value = *x - zero_point;
        s0 += value * *w0++;
        s1 += value * *w1++;
        s2 += value * *w2++;
        s3 += value * *w3++;
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

/* The same for one output. */
static inline int32_t fedmote_dot_1(int32_t sum, const int8_t *x, int32_t zero_point, const int8_t *w, uint32_t n) {
    for (const int8_t *end = x + n; x != end; x++) {
        sum += (*x - zero_point) * *w++;
    }
    return sum;
}

#endif
