/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum of two tensors. The converter measures both in half of the larger scale's steps, so that one input always has the
 * factor 1/2: its part of the sum is exact, and only the other one is requantized. Roundings and the zero point of the
 * output are added within the multiplications (SMMLAR); taking 1 from what is negative sends ties away from zero.
 */
#include "dsp.h"
#include "kernels/sum.h"

/* Of the inputs: value = q * scale + offset. */
struct terms {
    const int8_t *exact, *other;
    int32_t exact_scale, exact_offset;
    int32_t other_scale, other_offset; /* doubled, for SMMLAR */
    int32_t multiplier, rounding;
    uint32_t right;
};

static bool is_half(int32_t multiplier, int32_t shift) { return multiplier == INT32_C(1) << 30 && shift == 0; }

/* The sum is below 2^29, and so is all that is added to it: nothing overflows. A second input that repeats is not
 * usual. */
static bool is_usual(const struct fedmote_sum *op) {
    return op->operands.count2 == op->operands.count && op->left_shift >= 1U && op->left_shift <= 20U &&
           op->output_shift <= -1 && op->output_shift >= -22 &&
           ((is_half(op->multiplier1, op->shift1) && (op->shift2 < 0 || is_half(op->multiplier2, op->shift2))) ||
            (is_half(op->multiplier2, op->shift2) && op->shift1 < 0));
}

static struct terms terms_of(const struct fedmote_sum *op, const uint8_t *weights, const int8_t *memory) {
    const struct fedmote_operands *in = &op->operands;
    const int8_t *first = memory + op->op.input_offset, *second = fedmote_second_operand(in, weights, memory);
    const bool is_first_exact = is_half(op->multiplier1, op->shift1);
    const int32_t exact_zero = is_first_exact ? in->input1_zero_point : in->input2_zero_point;
    const int32_t other_zero = is_first_exact ? in->input2_zero_point : in->input1_zero_point;
    const int32_t shift = is_first_exact ? op->shift2 : op->shift1;
    struct terms terms = {is_first_exact ? first : second,
                          is_first_exact ? second : first,
                          INT32_C(1) << (op->left_shift - 1U),
                          0,
                          INT32_C(1) << (op->left_shift + 1U),
                          0,
                          is_first_exact ? op->multiplier2 : op->multiplier1,
                          0,
                          (uint32_t)-shift};
    if (shift == 0) { /* exact as well: twice the half, halved */
        terms.other_scale *= 2;
        terms.right = 1;
    }
    terms.rounding = INT32_C(1) << (terms.right - 1U);
    terms.exact_offset = -exact_zero * terms.exact_scale;
    terms.other_offset = -other_zero * terms.other_scale;
    return terms;
}

static void add_usual(const struct terms *terms, const struct fedmote_sum *op, int8_t *output, uint32_t begin,
                      uint32_t stop) {
    const struct terms t = *terms;
    const uint32_t right = (uint32_t)-op->output_shift;
    const int32_t multiplier = op->output_multiplier;
    const int32_t rounding = (INT32_C(1) << (right - 1U)) + op->operands.output_zero_point * (INT32_C(1) << right);
    for (uint32_t i = begin; i < stop; i++) {
        const int32_t other = t.other[i] * t.other_scale + t.other_offset;
        const int32_t product = fedmote_dsp_quotient(other, t.multiplier, t.rounding) + (other >> 31);
        const int32_t sum = t.exact[i] * t.exact_scale + t.exact_offset + (product >> t.right);
        const int32_t scaled = fedmote_dsp_quotient(2 * sum, multiplier, rounding) + (sum >> 31);
        output[i] = fedmote_dsp_saturated(scaled >> right);
    }
}

void fedmote_add(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_sum *op = &record->sum;
    const uint32_t begin = first * FEDMOTE_BLOCK, stop = end == op->op.units ? op->operands.count : end * FEDMOTE_BLOCK;
    int8_t *output = memory + op->op.output_offset;
    if (!is_usual(op)) {
        fedmote_sum_elements(op, weights, memory, begin, stop);
        return;
    }
    const struct terms terms = terms_of(op, weights, memory);
    add_usual(&terms, op, output, begin, stop);
    fedmote_dsp_clamp(output + begin, stop - begin, op->activation_min, op->activation_max);
}
