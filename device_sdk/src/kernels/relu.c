/* SPDX-License-Identifier: Apache-2.0
 *
 * A clamp that changes the quantization: ReLU, ReLU6 and every other [activation_min, activation_max].
 */
#include "requantize.h"

void fedmote_relu(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                  uint32_t end) {
    const struct fedmote_relu *op = &record->relu;
    (void)weights;
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset;
    const uint32_t stop = end == op->op.units ? op->count : end * FEDMOTE_BLOCK;
    for (uint32_t i = first * FEDMOTE_BLOCK; i < stop; i++) {
        const int32_t scaled = fedmote_requantize(input[i] - op->input_zero_point, op->multiplier, op->shift);
        output[i] =
            fedmote_clamp(fedmote_wrapping_add(scaled, op->output_zero_point), op->activation_min, op->activation_max);
    }
}
