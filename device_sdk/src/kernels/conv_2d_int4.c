/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution with weights of four bits: conv_2d.c, channel by channel.
 */
#include "conv_rows.h"
#include "int4.h"

/* The sum of one kernel row; `first`: index of its first weight, `x`: the group's channels at the patch's first tap. */
static int32_t row_sum(const struct fedmote_conv *op, const struct fedmote_patch *patch, uint32_t row, const int8_t *x,
                       const uint8_t *w, uint32_t first) {
    const uint32_t channels = op->group_in_c;
    if (!fedmote_patch_has(patch, row, patch->first_tap)) {
        return op->input_zero_point * fedmote_int4_sum(w, first, op->kernel_w * channels);
    }
    const uint32_t begin = patch->first_tap, end = begin + patch->taps;
    int32_t sum = 0;
    if (!patch->is_whole) {
        sum = op->input_zero_point * (fedmote_int4_sum(w, first, begin * channels) +
                                      fedmote_int4_sum(w, first + end * channels, (op->kernel_w - end) * channels));
    }
    const bool is_run = patch->x_tap_step == channels;
    const uint32_t step = is_run ? patch->taps : 1U; /* taps of one dot product */
    x += (row - patch->first_row) * patch->x_row_step;
    for (uint32_t tap = begin; tap < end; tap += step, x += patch->x_tap_step) {
        sum += fedmote_int4_dot(x, w, first + tap * channels, step * channels);
    }
    return sum;
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32_t row_step = op->kernel_w * op->group_in_c;
    const int8_t *x = patch->x;
    uint32_t index = 0;
    for (uint32_t c = 0, end = op->group_out_c; c < op->out_c; c++) {
        if (c == end) {
            end += op->group_out_c;
            x += op->group_in_c;
        }
        int32_t sum = 0;
        for (uint32_t row = 0; row < op->kernel_h; row++, index += row_step) {
            sum += row_sum(op, patch, row, x, (const uint8_t *)weights, index);
        }
        fedmote_scale(out + c, scaling, c, &sum, 1U);
    }
}

void fedmote_conv_2d_int4(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                          uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.group_in_c, convolve);
}
