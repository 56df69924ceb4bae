/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: output channel c sees input channel c / group_out_c alone. A table says where each tap's
 * input is, at a position; taps in the padding find the input's zero point in a place of their own. Neighbouring
 * channels lie beside each other in input and weights, so many are done with one table where each input channel has one
 * output.
 */
#include <string.h>

#include "conv_rows.h"
#include "dot.h"

/* Taps of one table. */
#define TAPS 32U

/* The taps from *tap of *row on, as many as fit a table: x[i] points at the first channel's input. */
static uint32_t find_taps(const int8_t **x, const struct fedmote_conv *op, const struct fedmote_patch *patch,
                          uint32_t in_c, const int8_t *padding, uint32_t *row, uint32_t *tap) {
    uint32_t taps = 0;
    for (; *row < op->kernel_h; ++*row, *tap = 0) {
        const uint32_t y = *row - patch->first_row;
        const int8_t *in = patch->x + in_c;
        if (y < patch->rows) {
            in += y * patch->x_row_step;
        }
        for (; *tap < op->kernel_w; ++*tap) {
            if (taps == TAPS) {
                return taps;
            }
            const uint32_t column = *tap - patch->first_tap;
            x[taps++] = y < patch->rows && column < patch->taps ? in + column * patch->x_tap_step : padding;
        }
    }
    return taps;
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const int8_t *x[TAPS];
    int8_t padding[FEDMOTE_SUMS];
    memset(padding, op->input_zero_point, sizeof padding);
    for (uint32_t c = 0, count; c < op->out_c; c += count) {
        count = op->group_out_c > 1U ? 1U : op->out_c - c < FEDMOTE_SUMS ? op->out_c - c : FEDMOTE_SUMS;
        const uint32_t in_c = op->group_out_c > 1U ? c / op->group_out_c : c;
        const int8_t *w = weights + c;
        int32_t sums[FEDMOTE_SUMS] = {0};
        uint32_t row = 0, tap = 0;
        while (row < op->kernel_h) {
            const uint32_t taps = find_taps(x, op, patch, in_c, padding, &row, &tap);
            fedmote_depthwise_dot(sums, count, x, taps, w, op->out_c);
            w += taps * op->out_c;
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.out_c, convolve);
}
