/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

/* Left shifts of at most 22 keep 255 << left_shift within 31 bits, and right shifts keep the sum of two of them there.
 */
static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_sum *op = &record->sum;
    return fedmote_are_operands(&op->op, &op->operands, bounds) && op->left_shift <= 22U &&
           fedmote_is_scaling(op->multiplier1, op->shift1) && op->shift1 <= 0 &&
           fedmote_is_scaling(op->multiplier2, op->shift2) && op->shift2 <= 0 &&
           fedmote_is_scaling(op->output_multiplier, op->output_shift) &&
           fedmote_is_activation(op->activation_min, op->activation_max);
}

const struct fedmote_operator fedmote_operator_add = {FEDMOTE_OPCODE_ADD, sizeof(struct fedmote_sum) / 4U, is_valid,
                                                      fedmote_add};
