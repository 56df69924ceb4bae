/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of convolutions and fully connected layers, where nearly all instructions of an encoder are spent.
 * They are functions of their own so that all that a loop needs stays in registers: inlined into the loops around them,
 * they spill. Sums are int32; the package reader has made sure that they cannot overflow.
 */
#ifndef FEDMOTE_DOT_H
#define FEDMOTE_DOT_H

#include <stdint.h>

#include "window.h"

/* Conv-2d and fully-connected: sums[j] += sum over i of x[i] * w[j * stride + i], for j below `count`, 1 or 4. x s8[n],
 * sums s32[count]. Four outputs share each input byte that is loaded. */
void fedmote_dot(int32_t *sums, uint32_t count, const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n);

/* The same where every x[i] is `value`: taps in the padding. */
void fedmote_dot_constant(int32_t *sums, uint32_t count, int32_t value, const int8_t *w, uint32_t stride, uint32_t n);

/* Depthwise: sums[j] += sum over the taps of the patch of x[j] * w[j], for j below `count`, 1 or 4. `x` and `w` point
 * at the first channel's bytes of the first tap. */
void fedmote_depthwise_dot(int32_t *sums, uint32_t count, const struct fedmote_patch *patch, const int8_t *x,
                           const int8_t *w);

#endif
