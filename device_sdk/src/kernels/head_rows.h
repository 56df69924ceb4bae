/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of the integer head, over a group of one to four rows of weights that stand side by side,
 * [inputs][rows]. Weights have 32768 added (src/head_integer.c). x: features without zero point, as words, at least
 * one.
 */
#ifndef FEDMOTE_HEAD_ROWS_H
#define FEDMOTE_HEAD_ROWS_H

#include <stdint.h>

#define FEDMOTE_ROWS 4U
#define FEDMOTE_CHANGE_FRACTION 16 /* bits of a change below one unit of a weight */
#define FEDMOTE_DITHER_STEP 0x9E37U

/* sums[row] = sum over i of weights[i][row] * x[i], modulo 2^32, with the weights as they are stored. */
void fedmote_rows_multiply(const uint16_t *weights, uint32_t rows, const int32_t *x, uint32_t inputs,
                           uint32_t sums[FEDMOTE_ROWS]);

/* weights[i][row] += (shares[row] * x[i] + r[i]) >> 16, where r[i] = random + (i + 1) * step modulo 2^16. */
void fedmote_rows_add(uint16_t *weights, uint32_t rows, const int32_t *x, uint32_t inputs,
                      const int32_t shares[FEDMOTE_ROWS], uint32_t random);

/* The largest magnitude among `count` stored weights, at least one. */
uint32_t fedmote_rows_largest(const uint16_t *weights, uint32_t count);

#endif
