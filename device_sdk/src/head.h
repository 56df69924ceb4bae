/* SPDX-License-Identifier: Apache-2.0
 *
 * The trained head: one dense layer with softmax cross-entropy, SGD with momentum, float32.
 *
 * D = inputs, C = outputs, parameters = weights f32[C][D] then bias f32[C]. The features are int8 and are dequantized
 * as (q - zero_point) * scale. There is no gradient buffer: `velocity` collects the mini-batch (velocity = momentum *
 * velocity + gradient), exactly torch.optim.SGD without dampening.
 */
#ifndef FEDMOTE_HEAD_H
#define FEDMOTE_HEAD_H

#include "fedmote/fedmote.h"

struct fedmote_head {
    float *parameters; /* f32[C * D + C], updated in place */
    float *velocity;   /* f32[C * D + C] */
    float *scratch;    /* f32[D + C]: features, then probabilities */
    uint32_t inputs;   /* D */
    uint32_t outputs;  /* C */
    float feature_scale;
    int32_t feature_zero_point;
};

/* Logits z[C] of one sample. In all functions: features s8[D], label < C, both unchecked. */
void fedmote_head_forward(const struct fedmote_head *head, const int8_t *features, float *logits);

/* Cross-entropy of one sample in nats and, where `norm` is not NULL, the gradient norm of the weights, |a| * |p -
 * onehot|. */
float fedmote_head_loss(const struct fedmote_head *head, const int8_t *features, uint32_t label, float *norm);

/* Opens a mini-batch: velocity *= momentum. */
void fedmote_head_batch_begin(struct fedmote_head *head, float momentum);
/* Adds one sample's gradient, divided by batch_size, to the velocity; returns the sample's loss. */
float fedmote_head_batch_add(struct fedmote_head *head, const int8_t *features, uint32_t label, uint32_t batch_size);
/* Closes it: parameters -= learning_rate * velocity. */
void fedmote_head_batch_end(struct fedmote_head *head, float learning_rate);

/* A mini-batch of one sample without momentum, which needs no velocity; returns the loss before it. */
float fedmote_head_step(struct fedmote_head *head, const int8_t *features, uint32_t label, float learning_rate);

#endif
