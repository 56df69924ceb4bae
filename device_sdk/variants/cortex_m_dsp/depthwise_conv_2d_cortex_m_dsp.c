/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: four channels of a tap lie in one word, in the input as in the weights, where the depth
 * multiplier is 1; what is left is done channel by channel.
 */
#include "dsp.h"
#include "window.h"

static int32_t dot_1(const struct fedmote_patch *patch, const int8_t *x, int32_t zero_point, const int8_t *w) {
    int32_t sum = 0;
    for (uint32_t row = 0; row < patch->rows; row++) {
        for (uint32_t tap = 0; tap < patch->taps; tap++) {
            sum += (x[row * patch->x_row_step + tap * patch->x_tap_step] - zero_point) *
                   w[row * patch->w_row_step + tap * patch->w_tap_step];
        }
    }
    return sum;
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const struct fedmote_dsp_taps taps = {fedmote_dsp_offset(op->input_zero_point),
                                          patch->x_tap_step,
                                          patch->w_tap_step,
                                          patch->taps,
                                          patch->x_row_step - patch->taps * patch->x_tap_step,
                                          patch->w_row_step - patch->taps * patch->w_tap_step,
                                          patch->rows};
    const uint32_t in_fours = op->depth_multiplier == 1U && patch->rows > 0U ? op->out_c & ~3U : 0U;
    struct fedmote_dsp_ending ending = fedmote_dsp_ending_at(scaling, 0U);
    const int8_t *x = patch->x, *w = weights + patch->w;
    int32_t sums[4];
    uint32_t c = 0;
    for (; c < in_fours; c += 4U) {
        fedmote_dsp_depthwise_4(sums, x + c, w + c, &taps);
        fedmote_dsp_finish(sums, &ending, out + c, 4U);
    }
    for (; c < op->out_c; c++) {
        sums[0] = dot_1(patch, x + c / op->depth_multiplier, op->input_zero_point, w + c);
        fedmote_dsp_finish(sums, &ending, out + c, 1U);
    }
    fedmote_dsp_clamp(out, op->out_c, scaling);
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
