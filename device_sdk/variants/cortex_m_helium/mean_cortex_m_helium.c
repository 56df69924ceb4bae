/* SPDX-License-Identifier: Apache-2.0
 *
 * Mean over height and width, into a quantization of its own, four channels at a time.
 */
#include <arm_mve.h>

#include "requantize.h"

void fedmote_mean(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                  uint32_t end) {
    const struct fedmote_mean *op = &record->mean;
    (void)weights;
    int8_t *output = memory + op->op.output_offset;
    const uint32_t positions = op->in_h * op->in_w;
    for (uint32_t c = first; c < end; c += 4U) {
        const mve_pred16_t lanes = vctp32q(end - c);
        const int8_t *in = memory + op->op.input_offset + c;
        int32x4_t total = vdupq_n_s32(-(int32_t)positions * op->input_zero_point);
        for (uint32_t i = 0; i < positions; i++, in += op->channels) {
            total = vaddq_s32(total, vldrbq_z_s32(in, lanes));
        }
        int32_t sums[4];
        vst1q_s32(sums, total);
        for (uint32_t i = 0; i < 4U && i < end - c; i++) {
            const int32_t scaled = fedmote_requantize(sums[i], op->multiplier, op->shift);
            output[c + i] = fedmote_clamp(fedmote_wrapping_add(scaled, op->output_zero_point), INT8_MIN, INT8_MAX);
        }
    }
}
