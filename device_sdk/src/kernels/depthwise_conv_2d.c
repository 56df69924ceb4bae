/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: output channel c sees input channel c / depth_multiplier alone. Neighbouring channels lie
 * beside each other in input and weights, so four of them are done together where the depth multiplier is 1.
 */
#include "requantize.h"
#include "window.h"

/* Sums of `count` (1 or 4) channels at one position. `input` points at the first channel's in the input's first
 * position, `weights` at its weight of tap (0, 0). */
static inline void accumulate(int32_t sums[4], const struct fedmote_conv *op, const struct fedmote_window *rows,
                              const struct fedmote_window *columns, const int8_t *input, const int8_t *weights,
                              uint32_t count) {
    const int32_t zero_point = op->input_zero_point;
    const uint32_t column = fedmote_window_tap(columns, columns->first, op->dilation_w);
    for (uint32_t ky = rows->first; ky < rows->end; ky++) {
        uint32_t x = (fedmote_window_tap(rows, ky, op->dilation_h) * op->in_w + column) * op->in_c;
        uint32_t w = (ky * op->kernel_w + columns->first) * op->out_c;
        for (uint32_t kx = columns->first; kx < columns->end; kx++) {
            sums[0] += (input[x] - zero_point) * weights[w];
            if (count == 4U) {
                sums[1] += (input[x + 1U] - zero_point) * weights[w + 1U];
                sums[2] += (input[x + 2U] - zero_point) * weights[w + 2U];
                sums[3] += (input[x + 3U] - zero_point) * weights[w + 3U];
            }
            x += op->dilation_w * op->in_c;
            w += op->out_c;
        }
    }
}

void fedmote_depthwise_conv_2d(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                               uint32_t end) {
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights);
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows =
            fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        for (uint32_t x = 0; x < op->out_w; x++) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
            for (uint32_t c = 0; c < op->out_c;) {
                const uint32_t count = op->depth_multiplier == 1U && op->out_c - c >= 4U ? 4U : 1U;
                int32_t sums[4] = {0, 0, 0, 0};
                if (columns.first == columns.end) {
                    /* The whole window lies in the padding: the bias alone. */
                } else if (count == 4U) {
                    accumulate(sums, op, &rows, &columns, input + c, w + c, 4U);
                } else {
                    accumulate(sums, op, &rows, &columns, input + c / op->depth_multiplier, w + c, 1U);
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
