/* SPDX-License-Identifier: Apache-2.0 */
#include "sum.h"

void fedmote_add(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_sum *op = &record->sum;
    const uint32_t stop = end == op->op.units ? op->operands.count : end * FEDMOTE_BLOCK;
    fedmote_sum_elements(op, weights, memory, first * FEDMOTE_BLOCK, stop);
}
