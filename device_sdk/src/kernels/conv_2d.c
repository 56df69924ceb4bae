/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution. The taps of one kernel row are neighbours in memory, in the input as in the weights (unless the
 * kernel is dilated), so an output is a handful of long dot products.
 */
#include "conv_rows.h"
#include "dot.h"

/* All output channels of one position, four at a time while there are as many: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32_t stride = op->kernel_h * op->kernel_w * op->in_c;
    const uint32_t is_dilated = op->dilation_w != 1U;
    const uint32_t runs = is_dilated ? patch->taps : 1U;
    const uint32_t length = is_dilated ? op->in_c : patch->taps * op->in_c;
    for (uint32_t c = 0, count; c < op->out_c; c += count) {
        count = op->out_c - c >= 4U ? 4U : 1U;
        const int8_t *w = weights + c * stride + patch->w;
        int32_t sums[4] = {0, 0, 0, 0};
        for (uint32_t row = 0; row < patch->rows; row++) {
            for (uint32_t run = 0; run < runs; run++) {
                fedmote_dot(sums, count, patch->x + row * patch->x_row_step + run * patch->x_tap_step,
                            op->input_zero_point, w + row * patch->w_row_step + run * patch->w_tap_step, stride,
                            length);
            }
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_conv_2d(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    fedmote_conv_rows(op, weights, memory, first, end, op->in_c, convolve);
}
