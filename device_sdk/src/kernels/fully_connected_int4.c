/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer with weights of four bits.
 */
#include "int4.h"
#include "requantize.h"

void fedmote_fully_connected_int4(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                                  uint32_t first, uint32_t end) {
    const struct fedmote_dense *op = &record->dense;
    const int8_t *input = memory + op->op.input_offset;
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    int8_t *output = memory + op->op.output_offset;
    for (uint32_t c = first, count; c < end; c += count) {
        count = op->in_n % 2U == 0U && end - c >= 4U ? 4U : 1U;
        int32_t sums[4] = {0, 0, 0, 0};
        if (count == 4U) {
            fedmote_int4_dot_4(sums, input, weights + op->channels.weights, c * op->in_n, op->in_n, op->in_n);
        } else {
            sums[0] = fedmote_int4_dot(input, weights + op->channels.weights, c * op->in_n, op->in_n);
        }
        fedmote_scale(output + c, &scaling, c, sums, count);
    }
}
