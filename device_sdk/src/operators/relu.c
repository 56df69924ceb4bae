/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_relu *op = &record->relu;
    return fedmote_are_blocks(&op->op, op->count) && fedmote_is_tensor(bounds, op->op.input_offset, op->count) &&
           fedmote_is_tensor(bounds, op->op.output_offset, op->count) &&
           fedmote_is_scaling(op->multiplier, op->shift) && fedmote_is_int8(op->input_zero_point) &&
           fedmote_is_int8(op->output_zero_point) && fedmote_is_activation(op->activation_min, op->activation_max);
}

const struct fedmote_operator fedmote_operator_relu = {FEDMOTE_OPCODE_RELU, sizeof(struct fedmote_relu) / 4U, is_valid,
                                                       fedmote_relu};
