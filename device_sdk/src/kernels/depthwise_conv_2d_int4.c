/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution with weights of four bits: depthwise_conv_2d.c, channel by channel.
 */
#include "conv_rows.h"
#include "int4.h"

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    for (uint32_t c = 0, in_c = 0, of_group = 0; c < op->out_c; c++) {
        int32_t sum = 0;
        uint32_t index = c;
        for (uint32_t row = 0; row < op->kernel_h; row++) {
            for (uint32_t tap = 0; tap < op->kernel_w; tap++, index += op->out_c) {
                const int32_t value = fedmote_patch_has(patch, row, tap)
                                          ? patch->x[in_c + (row - patch->first_row) * patch->x_row_step +
                                                     (tap - patch->first_tap) * patch->x_tap_step]
                                          : op->input_zero_point;
                sum += value * fedmote_int4_at((const uint8_t *)weights, index);
            }
        }
        fedmote_scale(out + c, scaling, c, &sum, 1U);
        if (++of_group == op->group_out_c) {
            of_group = 0;
            in_c++;
        }
    }
}

void fedmote_depthwise_conv_2d_int4(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                                    uint32_t first, uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.out_c, convolve);
}
