/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

/* Whether all bytes that four loops reach from offset + start on lie in the arena. Each loop reaches less than 2^47. */
static bool is_walk(const struct fedmote_bounds *bounds, uint32_t offset, uint32_t start, const uint32_t extents[4],
                    const int32_t strides[4]) {
    int64_t lowest = (int64_t)offset + start, highest = lowest;
    for (uint32_t i = 0; i < 4U; i++) {
        const int64_t reach = (int64_t)(extents[i] - 1U) * strides[i];
        if (reach < 0) {
            lowest += reach;
        } else {
            highest += reach;
        }
    }
    return offset % FEDMOTE_ALIGNMENT == 0U && lowest >= 0 && highest < bounds->encoder_bytes;
}

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_copy *op = &record->copy;
    const uint32_t *n = op->extents;
    return fedmote_is_dimension(n[0]) && fedmote_are_dimensions(n[1], n[2], n[3]) &&
           fedmote_is_unit(&op->op, n[0], (uint64_t)n[1] * n[2] * n[3]) &&
           is_walk(bounds, op->op.input_offset, op->input_start, n, op->input_strides) &&
           is_walk(bounds, op->op.output_offset, op->output_start, n, op->output_strides);
}

const struct fedmote_operator fedmote_operator_strided_copy = {
    FEDMOTE_OPCODE_STRIDED_COPY, sizeof(struct fedmote_copy) / 4U, is_valid, fedmote_strided_copy};
