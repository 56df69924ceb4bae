/* SPDX-License-Identifier: Apache-2.0
 *
 * Mean over height and width, into a quantization of its own. The division by in_h * in_w is part of the multiplier.
 */
#include "requantize.h"

void fedmote_mean(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                  uint32_t end) {
    const struct fedmote_mean *op = &record->mean;
    (void)weights;
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset;
    const uint32_t positions = op->in_h * op->in_w;
    for (uint32_t c = first; c < end; c++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < positions; i++) {
            sum += input[i * op->channels + c] - op->input_zero_point;
        }
        const int32_t scaled = fedmote_requantize(sum, op->multiplier, op->shift);
        output[c] = fedmote_clamp(fedmote_wrapping_add(scaled, op->output_zero_point), INT8_MIN, INT8_MAX);
    }
}
