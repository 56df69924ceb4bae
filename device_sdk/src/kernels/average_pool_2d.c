/* SPDX-License-Identifier: Apache-2.0
 *
 * Average over windows. Padding does not count: a window at the edge divides by the elements that it has, rounding
 * half away from zero. Input and output share one quantization.
 */
#include "requantize.h"
#include "window.h"

static int32_t rounded_mean(int32_t sum, int32_t count) {
    return sum > 0 ? (sum + count / 2) / count : (sum - count / 2) / count;
}

void fedmote_average_pool_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_pool *op = &record->pool;
    (void)weights;
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->channels;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows = fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, 1U, op->in_h);
        for (uint32_t x = 0; x < op->out_w; x++) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, 1U, op->in_w);
            const uint32_t left = fedmote_window_tap(&columns, columns.first, 1U);
            const uint32_t width = columns.end - columns.first;
            const int32_t count = (int32_t)((rows.end - rows.first) * width);
            for (uint32_t c = 0; c < op->channels; c++) {
                int32_t sum = 0;
                for (uint32_t ky = rows.first; ky < rows.end; ky++) {
                    const uint32_t row = fedmote_window_tap(&rows, ky, 1U);
                    const int8_t *in = input + (row * op->in_w + left) * op->channels + c;
                    for (uint32_t kx = 0; kx < width; kx++) {
                        sum += in[kx * op->channels];
                    }
                }
                *output++ = fedmote_clamp(rounded_mean(sum, count), op->activation_min, op->activation_max);
            }
        }
    }
}
