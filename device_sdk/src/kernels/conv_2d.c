/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution. The taps of one kernel row are neighbours in memory, in the input as in the weights (unless the
 * kernel is dilated or has groups), so an output is a handful of long dot products. Taps in the padding have the
 * input's zero point for their input.
 */
#include "conv_rows.h"
#include "dot.h"

/* One kernel row, in the image or (row below patch->first_row, or behind its rows) in the padding: sums[j] of `count`
 * outputs whose weights of this row begin at w. */
static void add_row(int32_t *sums, uint32_t count, const struct fedmote_conv *op, const struct fedmote_patch *patch,
                    uint32_t row, const int8_t *x, const int8_t *w, uint32_t stride) {
    const uint32_t channels = op->group_in_c;
    if (!fedmote_patch_has(patch, row, patch->first_tap)) {
        fedmote_dot_constant(sums, count, op->input_zero_point, w, stride, op->kernel_w * channels);
        return;
    }
    const uint32_t left = patch->first_tap, right = op->kernel_w - left - patch->taps;
    if (left > 0U) {
        fedmote_dot_constant(sums, count, op->input_zero_point, w, stride, left * channels);
    }
    if (right > 0U) {
        fedmote_dot_constant(sums, count, op->input_zero_point, w + (left + patch->taps) * channels, stride,
                             right * channels);
    }
    const bool is_run = patch->x_tap_step == channels;
    const uint32_t runs = is_run ? 1U : patch->taps;
    const uint32_t length = is_run ? patch->taps * channels : channels;
    x += (row - patch->first_row) * patch->x_row_step;
    for (uint32_t run = 0; run < runs; run++) {
        fedmote_dot(sums, count, x + run * patch->x_tap_step, w + (left + run) * channels, stride, length);
    }
}

/* All output channels of one position, four of a group at a time while there are as many: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32_t row_step = op->kernel_w * op->group_in_c, stride = op->kernel_h * row_step;
    const int8_t *x = patch->x;
    for (uint32_t end = op->group_out_c, c = 0, count; c < op->out_c; c += count) {
        if (c == end) {
            end += op->group_out_c;
            x += op->group_in_c;
        }
        count = end - c >= 4U ? 4U : 1U;
        const int8_t *w = weights + c * stride;
        int32_t sums[4] = {0, 0, 0, 0};
        for (uint32_t row = 0; row < op->kernel_h; row++) {
            add_row(sums, count, op, patch, row, x, w + row * row_step, stride);
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.group_in_c, convolve);
}
