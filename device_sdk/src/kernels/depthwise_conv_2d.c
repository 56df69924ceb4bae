/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: output channel c sees input channel c / depth_multiplier alone. Neighbouring channels lie
 * beside each other in input and weights, so four of them are done together where the depth multiplier is 1.
 */
#include "dot.h"
#include "requantize.h"

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    for (uint32_t c = 0, count; c < op->out_c; c += count) {
        count = op->depth_multiplier == 1U && op->out_c - c >= 4U ? 4U : 1U;
        const uint32_t in_c = op->depth_multiplier == 1U ? c : c / op->depth_multiplier;
        int32_t sums[4] = {0, 0, 0, 0};
        fedmote_depthwise_dot(sums, count, patch, patch->x + in_c, op->input_zero_point, weights + patch->w + c);
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_depthwise_conv_2d(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                               uint32_t end) {
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
            const struct fedmote_patch patch = fedmote_patch_at(op, input, op->out_c, &rows, &columns);
            convolve(op, &scaling, &patch, w, output);
        }
    }
}
