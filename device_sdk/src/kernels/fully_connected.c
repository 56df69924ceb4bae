/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer: out[c] = requantize(bias[c] + sum over i of (in[i] - zero_point) * w[c][i]).
 */
#include "dot.h"
#include "requantize.h"

void fedmote_fully_connected(const struct fedmote_dense *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights) + first * op->in_n;
    int8_t *output = memory + op->op.output_offset + first;
    for (uint32_t c = first; c < end;) {
        const uint32_t count = end - c >= 4U ? 4U : 1U;
        int32_t sums[4] = {0, 0, 0, 0};
        if (count == 4U) {
            fedmote_dot_4(sums, input, op->input_zero_point, w, op->in_n, op->in_n);
        } else {
            sums[0] = fedmote_dot_1(0, input, op->input_zero_point, w, op->in_n);
        }
        for (uint32_t j = 0; j < count; j++) {
            *output++ = fedmote_channel_output(&op->channels, weights, c + j, sums[j], op->output_zero_point,
                                               op->activation_min, op->activation_max);
        }
        c += count;
        w += count * op->in_n;
    }
}
