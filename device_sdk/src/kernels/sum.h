/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum of two tensors with different scales: both are brought to a common scale of 2^left_shift finer steps first. Any
 * numbers, any second input; a variant may do better where the numbers are the usual ones.
 */
#ifndef FEDMOTE_SUM_H
#define FEDMOTE_SUM_H

#include "operands.h"
#include "requantize.h"

static inline int32_t fedmote_sum_term(int8_t q, int32_t zero_point, uint32_t left_shift, int32_t multiplier,
                                       int32_t shift) {
    return fedmote_requantize((q - zero_point) * (int32_t)(UINT32_C(1) << left_shift), multiplier, shift);
}

/* The elements [begin, stop). */
static inline void fedmote_sum_elements(const struct fedmote_sum *op, const uint8_t *weights, int8_t *memory,
                                        uint32_t begin, uint32_t stop) {
    const struct fedmote_operands *in = &op->operands;
    const int8_t *a = memory + op->op.input_offset;
    const int8_t *b = fedmote_second_operand(in, weights, memory);
    int8_t *output = memory + op->op.output_offset;
    uint32_t j = begin % in->count2;
    for (uint32_t i = begin; i < stop; i++, j = fedmote_second_next(in, j)) {
        const int32_t sum = fedmote_sum_term(a[i], in->input1_zero_point, op->left_shift, op->multiplier1, op->shift1) +
                            fedmote_sum_term(b[j], in->input2_zero_point, op->left_shift, op->multiplier2, op->shift2);
        const int32_t scaled = fedmote_requantize(sum, op->output_multiplier, op->output_shift);
        output[i] =
            fedmote_clamp(fedmote_wrapping_add(scaled, in->output_zero_point), op->activation_min, op->activation_max);
    }
}

#endif
