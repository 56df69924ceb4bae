/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: four channels of a tap lie in one word, in the input as in the weights, where the depth
 * multiplier is 1; what is left is done channel by channel.
 */
#include "conv_rows.h"
#include "dsp.h"

static int32_t dot_1(const struct fedmote_patch *patch, const int8_t *x, const int8_t *w) {
    int32_t sum = 0;
    for (uint32_t row = 0; row < patch->rows; row++) {
        for (uint32_t tap = 0; tap < patch->taps; tap++) {
            sum += x[row * patch->x_row_step + tap * patch->x_tap_step] *
                   w[row * patch->w_row_step + tap * patch->w_tap_step];
        }
    }
    return sum;
}

/* Adds the taps in the padding: sums[j] of `count` outputs whose weights of the first tap begin at w. */
static void add_padding(int32_t *sums, uint32_t count, const struct fedmote_conv *op, const struct fedmote_patch *patch,
                        const int8_t *w) {
    for (uint32_t row = 0; row < op->kernel_h; row++) {
        for (uint32_t tap = 0; tap < op->kernel_w; tap++, w += op->out_c) {
            for (uint32_t j = 0; j < count && !fedmote_patch_has(patch, row, tap); j++) {
                sums[j] += op->input_zero_point * w[j];
            }
        }
    }
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    struct fedmote_dsp_taps taps = {{0, 0, 0, 0},
                                    patch->x_tap_step,
                                    patch->w_tap_step,
                                    patch->taps,
                                    patch->x_row_step - patch->taps * patch->x_tap_step,
                                    patch->w_row_step - patch->taps * patch->w_tap_step,
                                    patch->rows};
    const uint32_t in_fours = op->group_out_c == 1U && patch->rows > 0U ? op->out_c & ~3U : 0U;
    struct fedmote_dsp_ending ending = fedmote_dsp_ending_at(scaling, 0U);
    const int8_t *x = patch->x, *w = weights + patch->w;
    int32_t sums[4];
    uint32_t c = 0;
    for (; c < in_fours; c += 4U) {
        if (!patch->is_whole) {
            memset(taps.first, 0, sizeof taps.first);
            add_padding(taps.first, 4U, op, patch, weights + c);
        }
        fedmote_dsp_depthwise_4(sums, x + c, w + c, &taps);
        fedmote_dsp_finish(sums, &ending, out + c, 4U);
    }
    for (; c < op->out_c; c++) {
        sums[0] = dot_1(patch, x + c / op->group_out_c, w + c);
        if (!patch->is_whole) {
            add_padding(sums, 1U, op, patch, weights + c);
        }
        fedmote_dsp_finish(sums, &ending, out + c, 1U);
    }
    fedmote_dsp_clamp(out, op->out_c, scaling);
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.out_c, convolve);
}
