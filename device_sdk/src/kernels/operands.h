/* SPDX-License-Identifier: Apache-2.0
 *
 * The second input of add and mul: which of its elements meets which of the first.
 */
#ifndef FEDMOTE_OPERANDS_H
#define FEDMOTE_OPERANDS_H

#include "kernels.h"

static inline const int8_t *fedmote_second_operand(const struct fedmote_operands *operands, const uint8_t *weights,
                                                   const int8_t *memory) {
    return operands->input2_is_constant != 0U ? (const int8_t *)weights + operands->input2_offset
                                              : memory + operands->input2_offset;
}

/* One element on; from the last one back to the first. */
static inline uint32_t fedmote_second_next(const struct fedmote_operands *operands, uint32_t j) {
    return j + 1U == operands->count2 ? 0U : j + 1U;
}

#endif
