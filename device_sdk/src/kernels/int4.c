/* SPDX-License-Identifier: Apache-2.0 */
#include "int4.h"

int32_t fedmote_int4_dot(const int8_t *x, const uint8_t *w, uint32_t first, uint32_t n) {
    int32_t sum = 0;
    w += first / 2U;
    if (first % 2U != 0U && n > 0U) {
        sum += *x++ * fedmote_int4_high(*w++);
        n--;
    }
    for (const int8_t *end = x + (n & ~UINT32_C(1)); x != end; x += 2, w++) {
        sum += x[0] * fedmote_int4_low(*w) + x[1] * fedmote_int4_high(*w);
    }
    return n % 2U != 0U ? sum + *x * fedmote_int4_low(*w) : sum;
}

/* One input times the same half of four bytes. */
static void add_half(int32_t *sums, int32_t value, const uint8_t *w, uint32_t step, uint32_t is_high) {
    for (uint32_t j = 0; j < 4U; j++, w += step) {
        sums[j] += value * (is_high != 0U ? fedmote_int4_high(*w) : fedmote_int4_low(*w));
    }
}

void fedmote_int4_dot_4(int32_t *sums, const int8_t *x, const uint8_t *w, uint32_t first, uint32_t stride, uint32_t n) {
    const uint32_t step = stride / 2U;
    w += first / 2U;
    if (first % 2U != 0U && n > 0U) {
        add_half(sums, *x++, w++, step, 1U);
        n--;
    }
    const uint8_t *w0 = w, *w1 = w0 + step, *w2 = w1 + step, *w3 = w2 + step;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (const int8_t *end = x + (n & ~UINT32_C(1)); x != end; x += 2) {
        const int32_t low = x[0], high = x[1];
        const uint8_t p0 = *w0++, p1 = *w1++, p2 = *w2++, p3 = *w3++;
        s0 += low * fedmote_int4_low(p0) + high * fedmote_int4_high(p0);
        s1 += low * fedmote_int4_low(p1) + high * fedmote_int4_high(p1);
        s2 += low * fedmote_int4_low(p2) + high * fedmote_int4_high(p2);
        s3 += low * fedmote_int4_low(p3) + high * fedmote_int4_high(p3);
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
    if (n % 2U != 0U) {
        add_half(sums, *x, w0, step, 0U);
    }
}

int32_t fedmote_int4_sum(const uint8_t *w, uint32_t first, uint32_t n) {
    int32_t sum = 0;
    for (uint32_t i = first; i < first + n; i++) {
        sum += fedmote_int4_at(w, i);
    }
    return sum;
}
