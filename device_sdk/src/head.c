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

/* Both loops do four elements at a time: half of the instructions of a plain one were the loop itself. */

/* sum + a . w over n elements */
static float dot(float sum, const float *w, const float *a, uint32_t n) {
    const float *end = a + n;
    for (const float *stop = a + (n & ~3U); a != stop; a += 4, w += 4) {
        sum += w[0] * a[0];
        sum += w[1] * a[1];
        sum += w[2] * a[2];
        sum += w[3] * a[3];
    }
    for (; a != end; a++) {
        sum += *w++ * *a;
    }
    return sum;
}

/* y += factor * x over n elements; they do not overlap. */
static void add_scaled(float *restrict y, float factor, const float *restrict x, size_t n) {
    const float *end = x + n;
    for (const float *stop = x + (n & ~(size_t)3); x != stop; x += 4, y += 4) {
        y[0] += factor * x[0];
        y[1] += factor * x[1];
        y[2] += factor * x[2];
        y[3] += factor * x[3];
    }
    for (; x != end; x++) {
        *y++ += factor * *x;
    }
}

/* Features as real numbers into scratch[0..D), logits into z[C]. */
static void forward(const struct fedmote_head *head, const int8_t *features, float *z) {
    float *a = head->scratch;
    for (uint32_t i = 0; i < head->inputs; i++) {
        a[i] = (float)(features[i] - head->feature_zero_point) * head->feature_scale;
    }
    const float *w = head->parameters;
    const float *bias = head->parameters + (size_t)head->outputs * head->inputs;
    for (uint32_t c = 0; c < head->outputs; c++, w += head->inputs) {
        z[c] = dot(bias[c], w, a, head->inputs);
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

/* Adds factor * gradient of one sample to `target`, laid out as the parameters; returns the loss. */
static float add_gradient(struct fedmote_head *head, const int8_t *features, uint32_t label, float *target,
                          float factor) {
    float *gradient = head->scratch + head->inputs;
    forward(head, features, gradient);
    const float loss = cross_entropy(gradient, head->outputs, label);
    float *bias = target + (size_t)head->outputs * head->inputs;
    for (uint32_t c = 0; c < head->outputs; c++, target += head->inputs) {
        const float share = factor * gradient[c];
        add_scaled(target, share, head->scratch, head->inputs);
        bias[c] += share;
    }
    return loss;
}

float fedmote_head_batch_add(struct fedmote_head *head, const int8_t *features, uint32_t label, uint32_t batch_size) {
    return add_gradient(head, features, label, head->velocity, 1.0f / (float)batch_size);
}

void fedmote_head_batch_end(struct fedmote_head *head, float learning_rate) {
    const size_t parameters = (size_t)head->outputs * head->inputs + head->outputs;
    add_scaled(head->parameters, -learning_rate, head->velocity, parameters);
}

float fedmote_head_step(struct fedmote_head *head, const int8_t *features, uint32_t label, float learning_rate) {
    return add_gradient(head, features, label, head->parameters, -learning_rate);
}
