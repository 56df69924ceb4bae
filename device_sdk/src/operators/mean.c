/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_mean *op = &record->mean;
    return fedmote_are_dimensions(op->in_h, op->in_w, op->channels) && op->in_h * op->in_w <= FEDMOTE_DIMENSION_MAX &&
           fedmote_is_unit(&op->op, op->channels, op->in_h * op->in_w) &&
           fedmote_is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           fedmote_is_tensor(bounds, op->op.output_offset, op->channels) &&
           fedmote_is_scaling(op->multiplier, op->shift) && fedmote_is_int8(op->input_zero_point) &&
           fedmote_is_int8(op->output_zero_point);
}

const struct fedmote_operator fedmote_operator_mean = {FEDMOTE_OPCODE_MEAN, sizeof(struct fedmote_mean) / 4U, is_valid,
                                                       fedmote_mean};
