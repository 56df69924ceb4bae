/* SPDX-License-Identifier: Apache-2.0
 *
 * The trained head: one or two dense layers, softmax cross-entropy or mean squared error, SGD with momentum, weight
 * decay and gradient clipping, exactly as torch.nn.utils.clip_grad_norm_ and torch.optim.SGD (without dampening):
 *
 *     g = gradient of the mean loss of a mini-batch        g *= min(1, clip_norm / (|g| + 1e-6))
 *     g += weight_decay * w        velocity = momentum * velocity + g        w -= learning_rate * velocity
 *
 * D = inputs, H = hidden units (0: one layer), C = outputs; the layers are D -> C, or D -> H -> C with a ReLU or
 * nothing between them. Parameters: layer by layer the weights [outputs][inputs], then the bias [outputs]. The features
 * are int8 and stand for (q - zero_point) * scale; no copy of them as real numbers is made.
 *
 * Memory. Parameters are updated in place and no gradient is stored: the velocity collects the mini-batch, and a
 * mini-batch of one sample without momentum goes straight into the parameters and needs no velocity at all. Clipping
 * needs the norm of a gradient that nobody stores. For one sample it is known in closed form (the gradient of a layer's
 * weights is an outer product). For more samples it is that of the velocity, if that was zero before; if it was not,
 * the mini-batch is gone through again: once more in front, to measure g . velocity, so that |g|^2 = |velocity + g|^2 -
 * |velocity|^2 - 2 g . velocity, and once more behind where there is something to clip, to take away what is too much.
 *
 * Two arithmetics stand behind one struct of functions; which of them a program names is linked, the other is not:
 * fedmote_float32 (head_float.c) for cores with an FPU, fedmote_int16 (head_integer.c) for those without.
 */
#ifndef FEDMOTE_HEAD_H
#define FEDMOTE_HEAD_H

#include "fedmote/fedmote.h"

/* How to train: numbers of a plan. */
struct fedmote_training {
    uint32_t learning_rate_micro, momentum_micro, weight_decay_micro;
    uint32_t clip_norm_micro; /* 0: gradients are not clipped */
    uint32_t loss;            /* enum fedmote_loss */
    uint32_t trained_layers;  /* so many of the last layers; all where there are fewer */
    bool is_bias_only;        /* of these layers */
    uint32_t seed;            /* of what fedmote_int16 draws for its rounding */
};

struct fedmote_head_shape {
    uint32_t inputs, hidden, outputs; /* D, H, C */
    bool is_relu;                     /* between two layers */
    float feature_scale;
    int32_t feature_zero_point;
};

/* What fedmote_int16 keeps of a layer: where its numbers stand. A real number is its int16 times 2^-exponent. */
struct fedmote_head_scaling {
    int16_t weight_exponent, bias_exponent;
    int16_t first_weight_exponent, first_bias_exponent; /* as the training began with them */
    uint32_t weight_bound, bias_bound;                  /* no number of the layer is larger than these */
    uint32_t weight_limit;                              /* nor may a weight become larger than this */
};

struct fedmote_head {
    const struct fedmote_arithmetic *arithmetic;
    struct fedmote_head_shape shape;
    struct fedmote_training training;
    void *parameters; /* arithmetic->parameter_bytes each, updated in place */
    void *velocity;   /* 4 bytes each; may be NULL where every mini-batch is one sample and momentum 0 */
    void *scratch;    /* fedmote_head_scratch_bytes(), 4-aligned; holds nothing between two calls */

    /* The mini-batch. */
    uint32_t batch_size;
    uint8_t sweep;    /* which time it is gone through */
    bool is_counting; /* losses of this sweep are new: samples of the others have been counted */
    struct {
        float velocity_square, product; /* |velocity|^2 before the mini-batch, g . velocity */
        float correction;
        /* Of fedmote_int16: its draws so far; the learning rate by the size of the mini-batch. */
        uint32_t counter;
        int32_t rate_mantissa, rate_shift;
        struct fedmote_head_scaling scaling[2];
    } state;
};

struct fedmote_arithmetic {
    uint32_t parameter_bytes;
    uint32_t words_per_input; /* of scratch memory */
    /* Takes the parameters f32[] `base` over and clears the velocity. Call after everything else of the head is set. */
    void (*begin)(struct fedmote_head *head, const float *base);
    /* The loss of one sample and, where `norm` is not NULL, the norm of the gradient of the last layer's weights. In
     * all functions: features s8[inputs], label < outputs, both unchecked. */
    float (*loss)(struct fedmote_head *head, const int8_t *features, uint32_t label, float *norm);
    /* A mini-batch: begin, then add each of its samples, then end. Where end returns true the same samples are to be
     * added once more, and end to be called again. add returns the loss of the sample. */
    void (*batch_begin)(struct fedmote_head *head, uint32_t batch_size);
    float (*batch_add)(struct fedmote_head *head, const int8_t *features, uint32_t label);
    bool (*batch_end)(struct fedmote_head *head);
    /* What training added to parameter `index` of `base`. */
    float (*delta)(const struct fedmote_head *head, const float *base, uint32_t index);
};

/* Parameters of a head. */
uint64_t fedmote_head_parameters(const struct fedmote_head_shape *shape);

/* Bytes of the scratch memory: errors of the outputs, values and errors of the hidden units, and the inputs of a layer
 * where the arithmetic wants them as words. */
uint64_t fedmote_head_scratch_bytes(const struct fedmote_head_shape *shape,
                                    const struct fedmote_arithmetic *arithmetic);

/* Whether mini-batches of at most `batch` samples need a velocity. */
bool fedmote_head_needs_velocity(const struct fedmote_training *training, uint32_t batch);

/* Layers of the head that are trained, 1 or 2. */
uint32_t fedmote_head_trained_layers(const struct fedmote_head *head);

/* Logits [outputs] of one sample in float32, whatever the arithmetic; `parameters` f32[], hidden f32[H]. */
void fedmote_head_logits(const struct fedmote_head_shape *shape, const float *parameters, const int8_t *features,
                         float *hidden, float *logits);

/* The way back through a layer: the gradient with respect to its inputs, input_error[i] = sum over c of
 * weights[c][i] * output_error[c]. What trains layers in front of the head goes on from here. */
void fedmote_head_input_gradient(const float *weights, uint32_t inputs, uint32_t outputs, const float *output_error,
                                 float *input_error);

#endif
