/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of the float head, over the rows of a layer's weights: eight inputs of all rows at a time, so that
 * what turns an int8 feature into a real number is done once for all rows, and there is no converted copy of the
 * features.
 */
#ifndef FEDMOTE_HEAD_TILES_H
#define FEDMOTE_HEAD_TILES_H

#include <stdint.h>

#define FEDMOTE_TILE 8U

/* sums[r] += weights[r][0..8) . tile, added one by one in this order; rows `stride` floats apart, `rows` at least 1. */
void fedmote_tile_multiply(const float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], float *sums,
                           uint32_t rows);

/* weights[r][0..8) += shares[r] * tile; the same shapes. */
void fedmote_tile_add(float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], const float *shares,
                      uint32_t rows);

#endif
