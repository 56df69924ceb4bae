/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_lookup *op = &record->lookup;
    return fedmote_are_blocks(&op->op, op->count) && fedmote_is_tensor(bounds, op->op.input_offset, op->count) &&
           fedmote_is_tensor(bounds, op->op.output_offset, op->count) && fedmote_is_constant(bounds, op->table, 256U);
}

const struct fedmote_operator fedmote_operator_table = {FEDMOTE_OPCODE_TABLE, sizeof(struct fedmote_lookup) / 4U,
                                                        is_valid, fedmote_table};
