/* SPDX-License-Identifier: Apache-2.0
 *
 * Product of two tensors, element by element.
 */
#include "operands.h"
#include "requantize.h"

void fedmote_mul(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_product *op = &record->product;
    const struct fedmote_operands *in = &op->operands;
    const int8_t *a = memory + op->op.input_offset;
    const int8_t *b = fedmote_second_operand(in, weights, memory);
    int8_t *output = memory + op->op.output_offset;
    const uint32_t stop = end == op->op.units ? in->count : end * FEDMOTE_BLOCK;
    uint32_t i = first * FEDMOTE_BLOCK;
    for (uint32_t j = i % in->count2; i < stop; i++, j = fedmote_second_next(in, j)) {
        const int32_t product = (a[i] - in->input1_zero_point) * (b[j] - in->input2_zero_point);
        const int32_t scaled = fedmote_requantize(product, op->multiplier, op->shift);
        output[i] =
            fedmote_clamp(fedmote_wrapping_add(scaled, in->output_zero_point), op->activation_min, op->activation_max);
    }
}
