/* SPDX-License-Identifier: Apache-2.0
 *
 * Written for a core with eight registers that every instruction can use, and no multiplication with a sum: four rows
 * at a time forward, two on the way back. More would be moved out of the way and back again.
 */
#include "head_rows.h"

void fedmote_rows_multiply(const uint16_t *weights, uint32_t rows, const int32_t *x, uint32_t inputs,
                           uint32_t sums[FEDMOTE_ROWS]) {
    const int32_t *const end = x + inputs;
    if (rows == 4U) {
        uint32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
        for (; x != end; weights += 4) {
            const uint32_t value = (uint32_t)*x++;
            sum0 += weights[0] * value;
            sum1 += weights[1] * value;
            sum2 += weights[2] * value;
            sum3 += weights[3] * value;
        }
        sums[0] = sum0;
        sums[1] = sum1;
        sums[2] = sum2;
        sums[3] = sum3;
        return;
    }
    if (rows == 2U) {
        uint32_t sum0 = 0, sum1 = 0;
        for (; x != end; weights += 2) {
            const uint32_t value = (uint32_t)*x++;
            sum0 += weights[0] * value;
            sum1 += weights[1] * value;
        }
        sums[0] = sum0;
        sums[1] = sum1;
        return;
    }
    for (uint32_t row = 0; row < rows; row++) {
        const uint16_t *weight = weights + row;
        uint32_t sum = 0;
        for (const int32_t *input = x; input != end; weight += rows) {
            sum += *weight * (uint32_t)*input++;
        }
        sums[row] = sum;
    }
}

static inline uint16_t changed(uint16_t weight, int32_t share, int32_t x, uint32_t random) {
    const int32_t change = (int32_t)((uint32_t)(share * x) + random) >> FEDMOTE_CHANGE_FRACTION;
    return (uint16_t)(weight + (uint32_t)change);
}

/* Two neighbouring rows of a group of `rows`; a constant step of the weights, once this is inlined. */
static inline void add_pair(uint16_t *weights, uint32_t rows, const int32_t *x, const int32_t *end, int32_t share0,
                            int32_t share1, uint32_t random, uint32_t step) {
    for (; x != end; weights += rows) {
        const int32_t value = *x++;
        random = (uint16_t)(random + step);
        weights[0] = changed(weights[0], share0, value, random);
        weights[1] = changed(weights[1], share1, value, random);
    }
}

void fedmote_rows_add(uint16_t *weights, uint32_t rows, const int32_t *x, uint32_t inputs,
                      const int32_t shares[FEDMOTE_ROWS], uint32_t random) {
    const int32_t *const end = x + inputs;
    if (rows == 4U) {
        add_pair(weights, 4U, x, end, shares[0], shares[1], random, FEDMOTE_DITHER_STEP);
        add_pair(weights + 2, 4U, x, end, shares[2], shares[3], random, FEDMOTE_DITHER_STEP);
        return;
    }
    if (rows == 2U) {
        add_pair(weights, 2U, x, end, shares[0], shares[1], random, FEDMOTE_DITHER_STEP);
        return;
    }
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t dither = random;
        uint16_t *weight = weights + row;
        for (const int32_t *input = x; input != end; weight += rows) {
            dither = (uint16_t)(dither + FEDMOTE_DITHER_STEP);
            *weight = changed(*weight, shares[row], *input++, dither);
        }
    }
}

uint32_t fedmote_rows_largest(const uint16_t *weights, uint32_t count) {
    uint32_t low = *weights, high = *weights;
    for (const uint16_t *const end = weights + count; weights != end;) {
        const uint32_t weight = *weights++;
        if (weight > high) {
            high = weight;
        }
        if (weight < low) {
            low = weight;
        }
    }
    const uint32_t above = high > 32768U ? high - 32768U : 0U, below = low < 32768U ? 32768U - low : 0U;
    return above > below ? above : below;
}
