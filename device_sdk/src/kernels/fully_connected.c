/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer: out[c] = requantize(bias[c] + sum over i of in[i] * w[c][i]), the zero point being in the
 * bias.
 */
#include "dot.h"
#include "requantize.h"

void fedmote_fully_connected(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_dense *op = &record->dense;
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights) + first * op->in_n;
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    int8_t *output = memory + op->op.output_offset + first;
    for (uint32_t c = first, count; c < end; c += count) {
        int32_t sums[FEDMOTE_SUMS] = {0};
        count = end - c < FEDMOTE_SUMS ? end - c : FEDMOTE_SUMS;
        fedmote_dot(sums, count, input, w, op->in_n, op->in_n);
        fedmote_scale(output, &scaling, c, sums, count);
        w += count * op->in_n;
        output += count;
    }
}
