/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of convolutions and fully connected layers, where nearly all instructions of an encoder are spent.
 * They are functions of their own so that all that a loop needs stays in registers: inlined into the loops around them,
 * they spill. Sums are int32; the package reader has made sure that they cannot overflow.
 */
#ifndef FEDMOTE_DOT_H
#define FEDMOTE_DOT_H

#include <stdint.h>

/* The sums of so many outputs wait on the stack of a kernel before they are scaled together. */
#define FEDMOTE_SUMS 64U

/* Conv-2d and fully-connected: sums[j] += sum over i of x[i] * w[j * stride + i], for j below `count`. x s8[n], sums
 * s32[count]. */
void fedmote_dot(int32_t *sums, uint32_t count, const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n);

/* Depthwise: sums[j] += sum over i of x[i][j] * w[i * stride + j], for j below `count` and i below `taps`. */
void fedmote_depthwise_dot(int32_t *sums, uint32_t count, const int8_t *const *x, uint32_t taps, const int8_t *w,
                           uint32_t stride);

#endif
