/* SPDX-License-Identifier: Apache-2.0
 *
 * For cores with eight registers at hand, no multiply-accumulate, and signed bytes that are loaded from the sum of two
 * registers alone (ARMv6-M): few values live at a time, and one index for all rows, which counts up to 0 so that its
 * sign ends the loop.
 */
#include "dot.h"

/* What the table of a 3 x 3 kernel has. */
#define NINE 9U

/* Two outputs: eight registers hold all that the loop needs. n > 0. */
static void dot_2(const int8_t *x, const int8_t *w, uint32_t stride, int32_t n, int32_t *sums) {
    const int8_t *x_end = x + n, *w0_end = w + n, *w1_end = w0_end + stride;
    int32_t s0 = sums[0], s1 = sums[1], i = -n;
    do {
        const int32_t value = x_end[i];
        s0 += value * w0_end[i];
        s1 += value * w1_end[i];
    } while (++i < 0);
    sums[0] = s0;
    sums[1] = s1;
}

static int32_t dot_1(int32_t sum, const int8_t *x, const int8_t *w, int32_t n) {
    const int8_t *x_end = x + n, *w_end = w + n;
    int32_t i = -n;
    do {
        sum += x_end[i] * w_end[i];
    } while (++i < 0);
    return sum;
}

void fedmote_dot(int32_t *sums, uint32_t count, const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n) {
    for (; count >= 2U; count -= 2U) {
        dot_2(x, w, stride, (int32_t)n, sums);
        sums += 2;
        w += 2U * stride;
    }
    if (count > 0U) {
        *sums = dot_1(*sums, x, w, (int32_t)n);
    }
}

/* Written out: a loop would cost more than its body. Not inlined: the offsets of all taps would be worked out in front
 * of the loop over channels, and spilled. */
__attribute__((noinline)) static int32_t depthwise_dot_9(const int8_t *const *x, uint32_t j, const int8_t *w,
                                                         uint32_t stride) {
    int32_t sum = 0;
    sum += x[0][j] * w[j], w += stride;
    sum += x[1][j] * w[j], w += stride;
    sum += x[2][j] * w[j], w += stride;
    sum += x[3][j] * w[j], w += stride;
    sum += x[4][j] * w[j], w += stride;
    sum += x[5][j] * w[j], w += stride;
    sum += x[6][j] * w[j], w += stride;
    sum += x[7][j] * w[j], w += stride;
    return sum + x[8][j] * w[j];
}

static int32_t depthwise_dot(const int8_t *const *x, uint32_t taps, uint32_t j, const int8_t *w, uint32_t stride) {
    int32_t sum = 0;
    for (const int8_t *const *end = x + taps; x != end; w += stride) {
        sum += (*x++)[j] * w[j];
    }
    return sum;
}

void fedmote_depthwise_dot(int32_t *sums, uint32_t count, const int8_t *const *x, uint32_t taps, const int8_t *w,
                           uint32_t stride) {
    for (uint32_t j = 0; j < count; j++) {
        sums[j] += taps == NINE ? depthwise_dot_9(x, j, w, stride) : depthwise_dot(x, taps, j, w, stride);
    }
}
