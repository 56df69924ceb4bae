/* SPDX-License-Identifier: Apache-2.0
 *
 * The walk over output positions that convolutions share. What is done at a position is the kernel's own.
 */
#ifndef FEDMOTE_CONV_ROWS_H
#define FEDMOTE_CONV_ROWS_H

#include "requantize.h"
#include "window.h"

/* All output channels of one position: out s8[out_c]. */
typedef void fedmote_position(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                              const struct fedmote_patch *patch, const int8_t *weights, int8_t *out);

/* Does the rows [first, end), position by position. Inlined with a `convolve` known to the compiler: no call by
 * pointer. */
static inline void fedmote_conv_rows(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory,
                                     uint32_t first, uint32_t end, uint32_t w_channels, fedmote_position *convolve) {
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights);
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows =
            fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        for (uint32_t x = 0; x < op->out_w; x++, output += op->out_c) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
            const struct fedmote_patch patch = fedmote_patch_at(op, input, w_channels, &rows, &columns);
            convolve(op, &scaling, &patch, w, output);
        }
    }
}

#endif
