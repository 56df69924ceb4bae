/* SPDX-License-Identifier: Apache-2.0
 *
 * One dense layer with softmax cross-entropy. With features a[D], weights W[C][D], bias b[C], label y:
 *
 *     z = W a + b           loss = log(sum(exp(z - max z))) - (z[y] - max z)
 *     p = softmax(z)        dloss/dz = p - onehot(y)     dloss/dW = (p - onehot(y)) a^T     dloss/db = p - onehot(y)
 *
 * so the norm of the weights' gradient is |a| * |p - onehot(y)|, known without forming the gradient. Subtracting max z
 * keeps every exponential within (0, 1]: no logit can overflow.
 */
#include "head.h"

#include <math.h>
#include <stddef.h>

/* Features as real numbers into scratch[0..D), logits into z[C]. */
static void forward(const struct fedmote_head *head, const int8_t *features, float *z) {
    float *a = head->scratch;
    for (uint32_t i = 0; i < head->inputs; i++) {
        a[i] = (float)(features[i] - head->feature_zero_point) * head->feature_scale;
    }
    const float *w = head->parameters;
    const float *bias = head->parameters + (size_t)head->outputs * head->inputs;
    for (uint32_t c = 0; c < head->outputs; c++, w += head->inputs) {
        float sum = bias[c];
        for (uint32_t i = 0; i < head->inputs; i++) {
            sum += w[i] * a[i];
        }
        z[c] = sum;
    }
}

/* Turns z[C] into p - onehot(label) in place and returns the loss. */
static float cross_entropy(float *z, uint32_t outputs, uint32_t label) {
    float highest = z[0];
    for (uint32_t c = 1; c < outputs; c++) {
        highest = z[c] > highest ? z[c] : highest;
    }
    const float label_margin = z[label] - highest;
    z[0] = expf(z[0] - highest);
    float sum = z[0];
    for (uint32_t c = 1; c < outputs; c++) {
        z[c] = expf(z[c] - highest);
        sum += z[c];
    }
    for (uint32_t c = 0; c < outputs; c++) {
        z[c] /= sum;
    }
    z[label] -= 1.0f;
    return logf(sum) - label_margin;
}

static float norm_of(const float *values, uint32_t count) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        sum += values[i] * values[i];
    }
    return sqrtf(sum);
}

void fedmote_head_forward(const struct fedmote_head *head, const int8_t *features, float *logits) {
    forward(head, features, logits);
}

float fedmote_head_loss(const struct fedmote_head *head, const int8_t *features, uint32_t label, float *norm) {
    float *gradient = head->scratch + head->inputs;
    forward(head, features, gradient);
    const float loss = cross_entropy(gradient, head->outputs, label);
    if (norm != NULL) {
        *norm = norm_of(head->scratch, head->inputs) * norm_of(gradient, head->outputs);
    }
    return loss;
}

void fedmote_head_batch_begin(struct fedmote_head *head, float momentum) {
    const size_t parameters = (size_t)head->outputs * head->inputs + head->outputs;
    for (size_t i = 0; i < parameters; i++) {
        head->velocity[i] *= momentum;
    }
}

float fedmote_head_batch_add(struct fedmote_head *head, const int8_t *features, uint32_t label, uint32_t batch_size) {
    const float *a = head->scratch;
    float *gradient = head->scratch + head->inputs;
    forward(head, features, gradient);
    const float loss = cross_entropy(gradient, head->outputs, label);
    float *w = head->velocity;
    float *bias = head->velocity + (size_t)head->outputs * head->inputs;
    for (uint32_t c = 0; c < head->outputs; c++, w += head->inputs) {
        const float share = gradient[c] / (float)batch_size;
        for (uint32_t i = 0; i < head->inputs; i++) {
            w[i] += share * a[i];
        }
        bias[c] += share;
    }
    return loss;
}

void fedmote_head_batch_end(struct fedmote_head *head, float learning_rate) {
    const size_t parameters = (size_t)head->outputs * head->inputs + head->outputs;
    for (size_t i = 0; i < parameters; i++) {
        head->parameters[i] -= learning_rate * head->velocity[i];
    }
}
