/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution with weights of four bits: conv_2d.c with other dot products.
 */
#include "conv_rows.h"
#include "int4.h"

/* sums[j] of `count` outputs, 1 or 4, whose weights begin `stride` apart: the dot products of n of them, from `first`
 * on. */
static void add_dots(int32_t *sums, uint32_t count, const int8_t *x, const uint8_t *w, uint32_t first, uint32_t stride,
                     uint32_t n) {
    if (count == 4U) {
        fedmote_int4_dot_4(sums, x, w, first, stride, n);
    } else {
        sums[0] += fedmote_int4_dot(x, w, first, n);
    }
}

/* The same for taps in the padding, whose input is `value`. */
static void add_padding(int32_t *sums, uint32_t count, int32_t value, const uint8_t *w, uint32_t first, uint32_t stride,
                        uint32_t n) {
    for (uint32_t j = 0; j < count; j++, first += stride) {
        sums[j] += value * fedmote_int4_sum(w, first, n);
    }
}

/* One kernel row; `first`: index of its first weight, `x`: the group's channels at the patch's first tap. */
static void add_row(int32_t *sums, uint32_t count, const struct fedmote_conv *op, const struct fedmote_patch *patch,
                    uint32_t row, const int8_t *x, const uint8_t *w, uint32_t first, uint32_t stride) {
    const uint32_t channels = op->group_in_c;
    if (!fedmote_patch_has(patch, row, patch->first_tap)) {
        add_padding(sums, count, op->input_zero_point, w, first, stride, op->kernel_w * channels);
        return;
    }
    const uint32_t begin = patch->first_tap, end = begin + patch->taps;
    if (!patch->is_whole) {
        add_padding(sums, count, op->input_zero_point, w, first, stride, begin * channels);
        add_padding(sums, count, op->input_zero_point, w, first + end * channels, stride,
                    (op->kernel_w - end) * channels);
    }
    const bool is_run = patch->x_tap_step == channels;
    const uint32_t step = is_run ? patch->taps : 1U; /* taps of one dot product */
    x += (row - patch->first_row) * patch->x_row_step;
    for (uint32_t tap = 0; tap < patch->taps; tap += step) {
        add_dots(sums, count, x + tap * patch->x_tap_step, w, first + (begin + tap) * channels, stride,
                 step * channels);
    }
}

/* All output channels of one position, four of a group at a time where their weights begin in the same half of a byte:
 * out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32_t row_step = op->kernel_w * op->group_in_c, stride = op->kernel_h * row_step;
    const int8_t *x = patch->x;
    for (uint32_t end = op->group_out_c, c = 0, count; c < op->out_c; c += count) {
        if (c == end) {
            end += op->group_out_c;
            x += op->group_in_c;
        }
        count = stride % 2U == 0U && end - c >= 4U ? 4U : 1U;
        int32_t sums[4] = {0, 0, 0, 0};
        for (uint32_t row = 0; row < op->kernel_h; row++) {
            add_row(sums, count, op, patch, row, x, (const uint8_t *)weights, c * stride + row * row_step, stride);
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_conv_2d_int4(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                          uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.group_in_c, convolve);
}
