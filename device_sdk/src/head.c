/* SPDX-License-Identifier: Apache-2.0
 *
 * What both arithmetics share: sizes.
 */
#include "head.h"

uint64_t fedmote_head_parameters(const struct fedmote_head_shape *shape) {
    const uint64_t last_inputs = shape->hidden == 0U ? shape->inputs : shape->hidden;
    return (shape->inputs + UINT64_C(1)) * shape->hidden + (last_inputs + 1U) * shape->outputs;
}

uint64_t fedmote_head_scratch_bytes(const struct fedmote_head_shape *shape,
                                    const struct fedmote_arithmetic *arithmetic) {
    const uint64_t inputs = shape->inputs > shape->hidden ? shape->inputs : shape->hidden;
    return UINT64_C(4) * (shape->outputs + UINT64_C(2) * shape->hidden + arithmetic->words_per_input * inputs);
}

bool fedmote_head_needs_velocity(const struct fedmote_training *training, uint32_t batch) {
    return batch > 1U || training->momentum_micro > 0U;
}

uint32_t fedmote_head_trained_layers(const struct fedmote_head *head) {
    return head->shape.hidden > 0U && head->training.trained_layers > 1U ? 2U : 1U;
}
