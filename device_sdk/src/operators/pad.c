/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_pad *op = &record->pad;
    return fedmote_are_dimensions(op->in_h, op->in_w, op->channels) && fedmote_is_dimension(op->out_h) &&
           fedmote_is_dimension(op->out_w) && fedmote_is_inside(op->pad_top, op->in_h, op->out_h) &&
           fedmote_is_inside(op->pad_left, op->in_w, op->out_w) &&
           fedmote_is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->channels) &&
           fedmote_is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           fedmote_is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->channels) &&
           fedmote_is_int8(op->value);
}

const struct fedmote_operator fedmote_operator_pad = {FEDMOTE_OPCODE_PAD, sizeof(struct fedmote_pad) / 4U, is_valid,
                                                      fedmote_pad};
