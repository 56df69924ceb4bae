/* SPDX-License-Identifier: Apache-2.0
 *
 * For cores with a dozen registers: four outputs share each input byte that is loaded.
 */
#include "dot.h"

static void dot_4(int32_t *sums, const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n) {
    const int8_t *w0 = w, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (const int8_t *end = x + n; x != end; x++) {
        const int32_t value = *x;
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

static int32_t dot_1(int32_t sum, const int8_t *x, const int8_t *w, uint32_t n) {
    for (const int8_t *end = x + n; x != end; x++) {
        sum += *x * *w++;
    }
    return sum;
}

void fedmote_dot(int32_t *sums, uint32_t count, const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n) {
    for (; count >= 4U; count -= 4U) {
        dot_4(sums, x, w, stride, n);
        sums += 4;
        w += 4U * stride;
    }
    for (; count > 0U; count--) {
        *sums = dot_1(*sums, x, w, n);
        sums++;
        w += stride;
    }
}

static void depthwise_dot_4(int32_t *sums, uint32_t j, const int8_t *const *x, uint32_t taps, const int8_t *w,
                            uint32_t stride) {
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (const int8_t *const *end = x + taps; x != end; x++) {
        const int8_t *in = *x + j;
        s0 += in[0] * w[0];
        s1 += in[1] * w[1];
        s2 += in[2] * w[2];
        s3 += in[3] * w[3];
        w += stride;
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

void fedmote_depthwise_dot(int32_t *sums, uint32_t count, const int8_t *const *x, uint32_t taps, const int8_t *w,
                           uint32_t stride) {
    uint32_t j = 0;
    for (; j + 4U <= count; j += 4U) {
        depthwise_dot_4(sums + j, j, x, taps, w + j, stride);
    }
    for (; j < count; j++) {
        int32_t sum = sums[j];
        for (uint32_t i = 0; i < taps; i++) {
            sum += x[i][j] * w[i * stride + j];
        }
        sums[j] = sum;
    }
}
