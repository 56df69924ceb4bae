/* SPDX-License-Identifier: Apache-2.0 */
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
    if (count == 4U) {
        dot_4(sums, x, w, stride, n);
    } else {
        sums[0] = dot_1(sums[0], x, w, n);
    }
}

void fedmote_dot_constant(int32_t *sums, uint32_t count, int32_t value, const int8_t *w, uint32_t stride, uint32_t n) {
    for (uint32_t j = 0; j < count; j++, w += stride) {
        int32_t total = 0;
        for (uint32_t i = 0; i < n; i++) {
            total += w[i];
        }
        sums[j] += value * total;
    }
}

static void depthwise_dot_4(int32_t *sums, const struct fedmote_patch *patch, const int8_t *x_row,
                            const int8_t *w_row) {
    const uint32_t x_step = patch->x_tap_step, w_step = patch->w_tap_step;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (uint32_t row = 0; row < patch->rows; row++) {
        const int8_t *x = x_row + row * patch->x_row_step, *w = w_row + row * patch->w_row_step;
        for (uint32_t tap = patch->taps;;) {
            s0 += x[0] * w[0];
            s1 += x[1] * w[1];
            s2 += x[2] * w[2];
            s3 += x[3] * w[3];
            if (--tap == 0U) {
                break; /* before the pointers leave the tensors */
            }
            x += x_step;
            w += w_step;
        }
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

static int32_t depthwise_dot_1(int32_t sum, const struct fedmote_patch *patch, const int8_t *x, const int8_t *w) {
    for (uint32_t row = 0; row < patch->rows; row++) {
        for (uint32_t tap = 0; tap < patch->taps; tap++) {
            sum += x[row * patch->x_row_step + tap * patch->x_tap_step] *
                   w[row * patch->w_row_step + tap * patch->w_tap_step];
        }
    }
    return sum;
}

void fedmote_depthwise_dot(int32_t *sums, uint32_t count, const struct fedmote_patch *patch, const int8_t *x,
                           const int8_t *w) {
    if (count == 4U) {
        depthwise_dot_4(sums, patch, x, w);
    } else {
        sums[0] = depthwise_dot_1(sums[0], patch, x, w);
    }
}
