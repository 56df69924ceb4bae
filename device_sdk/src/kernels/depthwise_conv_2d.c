/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: output channel c sees input channel c / depth_multiplier alone. Neighbouring channels lie
 * beside each other in input and weights, so four of them are done together where the depth multiplier is 1.
 */
#include "conv_rows.h"
#include "dot.h"

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
    fedmote_conv_rows(op, weights, memory, first, end, op->out_c, convolve);
}
