/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution. For one output position the taps of a kernel row that lie inside the input are neighbours in
 * memory, in the input as in the weights (unless the kernel is dilated): so a position is a handful of long dot
 * products, and the padding costs nothing inside of them.
 */
#include "dot.h"
#include "requantize.h"
#include "window.h"

/* One output position: the part of its window inside the input, cut into runs of `length` adjacent bytes. */
struct position {
    struct fedmote_window rows, columns;
    uint32_t runs; /* in each kernel row */
    uint32_t length;
};

static struct position position_at(const struct fedmote_conv *op, const struct fedmote_window *rows, uint32_t x) {
    struct position position;
    position.rows = *rows;
    position.columns = fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
    const uint32_t taps = position.columns.end - position.columns.first;
    const uint32_t is_dilated = op->dilation_w != 1U;
    position.runs = taps == 0U ? 0U : is_dilated ? taps : 1U;
    position.length = is_dilated ? op->in_c : taps * op->in_c;
    return position;
}

/* sums[j], j in 0..count-1, for the output channels whose weights begin at `w`; count is 1 or 4. */
static inline void accumulate(int32_t sums[4], const struct fedmote_conv *op, const struct position *at,
                              const int8_t *input, const int8_t *w, uint32_t count) {
    const uint32_t row_weights = op->kernel_w * op->in_c;
    for (uint32_t ky = at->rows.first; ky < at->rows.end; ky++) {
        const int8_t *row = input + fedmote_window_tap(&at->rows, ky, op->dilation_h) * op->in_w * op->in_c;
        for (uint32_t run = 0; run < at->runs; run++) {
            const uint32_t kx = at->columns.first + run;
            const int8_t *x = row + fedmote_window_tap(&at->columns, kx, op->dilation_w) * op->in_c;
            const int8_t *taps = w + ky * row_weights + kx * op->in_c;
            if (count == 4U) {
                fedmote_dot_4(sums, x, op->input_zero_point, taps, op->kernel_h * row_weights, at->length);
            } else {
                sums[0] = fedmote_dot_1(sums[0], x, op->input_zero_point, taps, at->length);
            }
        }
    }
}

void fedmote_conv_2d(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights);
    const uint32_t channel_weights = op->kernel_h * op->kernel_w * op->in_c;
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows =
            fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        for (uint32_t x = 0; x < op->out_w; x++) {
            const struct position at = position_at(op, &rows, x);
            for (uint32_t c = 0; c < op->out_c;) {
                const uint32_t count = op->out_c - c >= 4U ? 4U : 1U;
                int32_t sums[4] = {0, 0, 0, 0};
                if (count == 4U) {
                    accumulate(sums, op, &at, input, w + c * channel_weights, 4U);
                } else {
                    accumulate(sums, op, &at, input, w + c * channel_weights, 1U);
                }
                for (uint32_t j = 0; j < count; j++) {
                    *output++ = fedmote_channel_output(&op->channels, weights, c + j, sums[j], op->output_zero_point,
                                                       op->activation_min, op->activation_max);
                }
                c += count;
            }
        }
    }
}
