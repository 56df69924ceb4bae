/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum of two tensors with different scales: both are brought to a common scale of 2^left_shift finer steps first.
 */
#include "operands.h"
#include "requantize.h"

static inline int32_t rescale(int8_t q, int32_t zero_point, uint32_t left_shift, int32_t multiplier, int32_t shift) {
    return fedmote_requantize((q - zero_point) * (int32_t)(UINT32_C(1) << left_shift), multiplier, shift);
}

void fedmote_add(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_sum *op = &record->sum;
    const struct fedmote_operands *in = &op->operands;
    const int8_t *a = memory + op->op.input_offset;
    const int8_t *b = fedmote_second_operand(in, weights, memory);
    int8_t *output = memory + op->op.output_offset;
    const uint32_t stop = end == op->op.units ? in->count : end * FEDMOTE_BLOCK;
    uint32_t i = first * FEDMOTE_BLOCK;
    for (uint32_t j = i % in->count2; i < stop; i++, j = fedmote_second_next(in, j)) {
        const int32_t sum = rescale(a[i], in->input1_zero_point, op->left_shift, op->multiplier1, op->shift1) +
                            rescale(b[j], in->input2_zero_point, op->left_shift, op->multiplier2, op->shift2);
        const int32_t scaled = fedmote_requantize(sum, op->output_multiplier, op->output_shift);
        output[i] =
            fedmote_clamp(fedmote_wrapping_add(scaled, in->output_zero_point), op->activation_min, op->activation_max);
    }
}
