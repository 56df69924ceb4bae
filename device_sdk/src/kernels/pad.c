/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies the input into the middle of a larger output whose border has one value, the input's zero point.
 */
#include <string.h>

#include "kernels.h"

void fedmote_pad(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_pad *op = &record->pad;
    (void)weights;
    const uint32_t in_row = op->in_w * op->channels;
    const uint32_t out_row = op->out_w * op->channels;
    const uint32_t left = op->pad_left * op->channels;
    for (uint32_t y = first; y < end; y++) {
        int8_t *output = memory + op->op.output_offset + y * out_row;
        if (y < op->pad_top || y - op->pad_top >= op->in_h) {
            memset(output, (uint8_t)op->value, out_row);
            continue;
        }
        const int8_t *input = memory + op->op.input_offset + (y - op->pad_top) * in_row;
        memmove(output + left, input, in_row);
        memset(output, (uint8_t)op->value, left);
        memset(output + left + in_row, (uint8_t)op->value, out_row - left - in_row);
    }
}
