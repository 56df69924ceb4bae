/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves bytes by strides: concatenations, slices and transpositions.
 */
#include <string.h>

#include "kernels.h"

void fedmote_strided_copy(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                          uint32_t end) {
    const struct fedmote_copy *op = &record->copy;
    const int32_t *from = op->input_strides, *to = op->output_strides;
    const int32_t length = (int32_t)op->extents[3];
    (void)weights;
    for (int32_t i = (int32_t)first; i < (int32_t)end; i++) {
        for (int32_t j = 0; j < (int32_t)op->extents[1]; j++) {
            for (int32_t k = 0; k < (int32_t)op->extents[2]; k++) {
                const int8_t *x = memory + ((int32_t)(op->op.input_offset + op->input_start) + i * from[0] +
                                            j * from[1] + k * from[2]);
                int8_t *out =
                    memory + ((int32_t)(op->op.output_offset + op->output_start) + i * to[0] + j * to[1] + k * to[2]);
                if (from[3] == 1 && to[3] == 1) {
                    memmove(out, x, (uint32_t)length);
                    continue;
                }
                for (int32_t l = 0; l < length; l++) {
                    out[l * to[3]] = x[l * from[3]];
                }
            }
        }
    }
}
