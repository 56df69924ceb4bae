/* SPDX-License-Identifier: Apache-2.0 */
#include "head_tiles.h"

void fedmote_tile_multiply(const float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], float *sums,
                           uint32_t rows) {
    const float a0 = tile[0], a1 = tile[1], a2 = tile[2], a3 = tile[3];
    const float a4 = tile[4], a5 = tile[5], a6 = tile[6], a7 = tile[7];
    for (const float *const end = sums + rows; sums != end; weights += stride) {
        float sum = *sums;
        sum += weights[0] * a0;
        sum += weights[1] * a1;
        sum += weights[2] * a2;
        sum += weights[3] * a3;
        sum += weights[4] * a4;
        sum += weights[5] * a5;
        sum += weights[6] * a6;
        sum += weights[7] * a7;
        *sums++ = sum;
    }
}

void fedmote_tile_add(float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], const float *shares,
                      uint32_t rows) {
    const float a0 = tile[0], a1 = tile[1], a2 = tile[2], a3 = tile[3];
    const float a4 = tile[4], a5 = tile[5], a6 = tile[6], a7 = tile[7];
    for (const float *const end = shares + rows; shares != end; weights += stride) {
        const float share = *shares++;
        weights[0] += share * a0;
        weights[1] += share * a1;
        weights[2] += share * a2;
        weights[3] += share * a3;
        weights[4] += share * a4;
        weights[5] += share * a5;
        weights[6] += share * a6;
        weights[7] += share * a7;
    }
}
