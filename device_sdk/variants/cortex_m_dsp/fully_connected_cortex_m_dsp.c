/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer: the input becomes a column of widened values, over which four outputs run at a time.
 */
#include "dsp.h"

#define STEP 2U                         /* words from group to group */
#define COLUMN (2U * FEDMOTE_DSP_WORDS) /* inputs of one */

/* sums[j] of the outputs whose weights begin at w, j below `count`, 4 or 1. The column holds the part [0,
 * COLUMN) of the input already; a longer one is widened part by part. */
static void add_products(int32_t *sums, uint32_t *column, const struct fedmote_dense *op, const int8_t *input,
                         const int8_t *w, uint32_t count) {
    const uint32_t stride = count == 4U ? op->in_n : 0U;
    for (uint32_t begin = 0; begin < op->in_n; begin += COLUMN) {
        const uint32_t rest = op->in_n - begin;
        const uint32_t length = rest < COLUMN ? rest : COLUMN;
        if (op->in_n > COLUMN) {
            fedmote_dsp_widen(column, STEP, 0U, input + begin, length);
        }
        if (length >= 4U) {
            fedmote_dsp_dot_4x1(sums, column, w + begin, stride, length / 4U);
        }
        for (uint32_t i = length & ~3U; i < length; i++) {
            const int32_t value = fedmote_dsp_value(column, STEP, i);
            for (uint32_t j = 0; j < count; j++) {
                sums[j] += value * w[begin + j * op->in_n + i];
            }
        }
    }
}

void fedmote_fully_connected(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_dense *op = &record->dense;
    uint32_t column[FEDMOTE_DSP_WORDS];
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights) + first * op->in_n;
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    struct fedmote_dsp_ending ending = fedmote_dsp_ending_at(&scaling, first);
    int8_t *output = memory + op->op.output_offset + first;
    if (op->in_n <= COLUMN) {
        fedmote_dsp_widen(column, STEP, 0U, input, op->in_n);
    }
    for (uint32_t c = first, count; c < end; c += count) {
        count = end - c >= 4U ? 4U : 1U;
        int32_t sums[4] = {0, 0, 0, 0};
        add_products(sums, column, op, input, w, count);
        fedmote_dsp_finish(sums, &ending, output, count);
        w += count * op->in_n;
        output += count;
    }
    fedmote_dsp_clamp(memory + op->op.output_offset + first, end - first, &scaling);
}
