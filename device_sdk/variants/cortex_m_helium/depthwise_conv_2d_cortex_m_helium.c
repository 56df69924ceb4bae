/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: four channels side by side.
 */
#include <arm_mve.h>

#include "conv_rows.h"
#include "helium.h"

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    for (uint32_t c = 0; c < op->out_c; c += 4U) {
        const mve_pred16_t lanes = vctp32q(op->out_c - c);
        int32x4_t total = vdupq_n_s32(0);
        const int8_t *w = weights + c;
        const int8_t *row = patch->x + c;
        for (uint32_t ky = 0; ky < op->kernel_h; ky++) {
            const bool is_row = ky - patch->first_row < patch->rows;
            const int8_t *x = row;
            for (uint32_t kx = 0; kx < op->kernel_w; kx++, w += op->out_c) {
                const int32x4_t factors = vldrbq_z_s32(w, lanes);
                if (is_row && kx - patch->first_tap < patch->taps) {
                    total = vaddq_s32(total, vmulq_s32(vldrbq_z_s32(x, lanes), factors));
                    x += patch->x_tap_step;
                } else {
                    total = vmlaq_n_s32(total, factors, op->input_zero_point);
                }
            }
            row += is_row ? patch->x_row_step : 0U;
        }
        int32_t sums[4];
        vst1q_s32(sums, total);
        const uint32_t left = op->out_c - c;
        fedmote_scale(out + c, scaling, c, sums, left < 4U ? left : 4U);
    }
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    if (record->conv.group_out_c == 1U) {
        fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.out_c, convolve);
    } else {
        fedmote_conv_2d(record, weights, memory, first, end);
    }
}
