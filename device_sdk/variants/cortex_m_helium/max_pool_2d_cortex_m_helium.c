/* SPDX-License-Identifier: Apache-2.0
 *
 * Maximum over windows, 16 channels at a time; padding does not take part.
 */
#include <arm_mve.h>

#include "requantize.h"
#include "window.h"

void fedmote_max_pool_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                         uint32_t end) {
    const struct fedmote_pool *op = &record->pool;
    (void)weights;
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->channels;
    const int8x16_t low = vdupq_n_s8((int8_t)op->activation_min), high = vdupq_n_s8((int8_t)op->activation_max);
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows = fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, 1U, op->in_h);
        const uint32_t top = fedmote_window_tap(&rows, rows.first, 1U);
        for (uint32_t x = 0; x < op->out_w; x++, output += op->channels) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, 1U, op->in_w);
            const uint32_t left = fedmote_window_tap(&columns, columns.first, 1U);
            const int8_t *corner = input + (top * op->in_w + left) * op->channels;
            for (uint32_t c = 0; c < op->channels; c += 16U) {
                const mve_pred16_t lanes = vctp8q(op->channels - c);
                int8x16_t highest = low;
                for (uint32_t ky = rows.first; ky < rows.end; ky++) {
                    const int8_t *in = corner + c + (ky - rows.first) * op->in_w * op->channels;
                    for (uint32_t kx = columns.first; kx < columns.end; kx++, in += op->channels) {
                        highest = vmaxq_s8(highest, vldrbq_z_s8(in, lanes));
                    }
                }
                vstrbq_p_s8(output + c, vminq_s8(highest, high), lanes);
            }
        }
    }
}
