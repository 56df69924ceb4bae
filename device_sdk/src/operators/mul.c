/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_product *op = &record->product;
    return fedmote_are_operands(&op->op, &op->operands, bounds) && fedmote_is_scaling(op->multiplier, op->shift) &&
           fedmote_is_activation(op->activation_min, op->activation_max);
}

const struct fedmote_operator fedmote_operator_mul = {FEDMOTE_OPCODE_MUL, sizeof(struct fedmote_product) / 4U, is_valid,
                                                      fedmote_mul};
