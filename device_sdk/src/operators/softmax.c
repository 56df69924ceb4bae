/* SPDX-License-Identifier: Apache-2.0 */
#include "../little_endian.h"
#include "operator.h"

/* A row may be done in place. Where the output lay over a part of the input only, a difference from the largest element
 * could leave the table. */
static bool is_in_place_or_apart(const struct fedmote_op *op, uint64_t count) {
    const uint32_t low = op->input_offset < op->output_offset ? op->input_offset : op->output_offset;
    const uint32_t high = op->input_offset < op->output_offset ? op->output_offset : op->input_offset;
    return low == high || high - low >= count;
}

/* The first exponential is 1 and a row is short: the sum of a row stays in [2^19, 2^31). */
#define ELEMENTS_MAX 4095U

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_softmax_rows *op = &record->softmax;
    const uint64_t count = (uint64_t)op->rows * op->n;
    if (!fedmote_is_dimension(op->rows) || !fedmote_is_dimension(op->n) || op->n > ELEMENTS_MAX ||
        !fedmote_is_unit(&op->op, op->rows, op->n) || !fedmote_is_tensor(bounds, op->op.input_offset, count) ||
        !fedmote_is_tensor(bounds, op->op.output_offset, count) || !is_in_place_or_apart(&op->op, count) ||
        !fedmote_is_constant(bounds, op->exponentials, 4U * 256U)) {
        return false;
    }
    const uint8_t *exponentials = bounds->weights + op->exponentials;
    bool is_valid_table = fedmote_load_s32(exponentials) == INT32_MAX;
    for (uint32_t i = 0; i < 256U; i++) {
        is_valid_table = is_valid_table && fedmote_load_s32(exponentials + 4U * i) >= 0;
    }
    return is_valid_table;
}

const struct fedmote_operator fedmote_operator_softmax = {
    FEDMOTE_OPCODE_SOFTMAX, sizeof(struct fedmote_softmax_rows) / 4U, is_valid, fedmote_softmax};
