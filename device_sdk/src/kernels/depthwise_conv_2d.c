/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: output channel c sees input channel c / group_out_c alone. Neighbouring channels lie
 * beside each other in input and weights, so four of them are done together where each input channel has one output.
 * Taps in the padding have the input's zero point for their input.
 */
#include "conv_rows.h"
#include "dot.h"

/* The taps in the padding: sums[j] of `count` outputs whose weights of the first tap begin at w. */
static void add_padding(int32_t *sums, uint32_t count, const struct fedmote_conv *op, const struct fedmote_patch *patch,
                        const int8_t *w) {
    for (uint32_t row = 0; row < op->kernel_h; row++) {
        for (uint32_t tap = 0; tap < op->kernel_w; tap++, w += op->out_c) {
            for (uint32_t j = 0; j < count && !fedmote_patch_has(patch, row, tap); j++) {
                sums[j] += op->input_zero_point * w[j];
            }
        }
    }
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    for (uint32_t c = 0, count; c < op->out_c; c += count) {
        count = op->group_out_c == 1U && op->out_c - c >= 4U ? 4U : 1U;
        const uint32_t in_c = op->group_out_c == 1U ? c : c / op->group_out_c;
        int32_t sums[4] = {0, 0, 0, 0};
        fedmote_depthwise_dot(sums, count, patch, patch->x + in_c, weights + patch->w + c);
        if (!patch->is_whole) {
            add_padding(sums, count, op, patch, weights + c);
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.out_c, convolve);
}
