/* SPDX-License-Identifier: Apache-2.0
 *
 * Average over windows, four channels at a time. Padding does not count: a window at the edge divides by the elements
 * that it has, rounding half away from zero.
 */
#include <arm_mve.h>

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
        const uint32_t top = fedmote_window_tap(&rows, rows.first, 1U);
        for (uint32_t x = 0; x < op->out_w; x++, output += op->channels) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, 1U, op->in_w);
            const uint32_t left = fedmote_window_tap(&columns, columns.first, 1U);
            const int8_t *corner = input + (top * op->in_w + left) * op->channels;
            const int32_t count = (int32_t)((rows.end - rows.first) * (columns.end - columns.first));
            for (uint32_t c = 0; c < op->channels; c += 4U) {
                const mve_pred16_t lanes = vctp32q(op->channels - c);
                int32x4_t total = vdupq_n_s32(0);
                for (uint32_t ky = rows.first; ky < rows.end; ky++) {
                    const int8_t *in = corner + c + (ky - rows.first) * op->in_w * op->channels;
                    for (uint32_t kx = columns.first; kx < columns.end; kx++, in += op->channels) {
                        total = vaddq_s32(total, vldrbq_z_s32(in, lanes));
                    }
                }
                int32_t sums[4];
                vst1q_s32(sums, total);
                for (uint32_t i = 0; i < 4U && i < op->channels - c; i++) {
                    output[c + i] = fedmote_clamp(rounded_mean(sums[i], count), op->activation_min, op->activation_max);
                }
            }
        }
    }
}
