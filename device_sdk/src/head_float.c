/* SPDX-License-Identifier: Apache-2.0
 *
 * The head in float32. With a layer's inputs a, weights W, bias b:
 *
 *     z = W a + b        dloss/dW = e a^T    dloss/db = e    dloss/da = W^T e        where e = dloss/dz:
 *
 *     cross-entropy    loss = log(sum(exp(z - max z))) - (z[y] - max z)      e = softmax(z) - onehot(y)
 *     squared error    loss = |z - onehot(y)|^2 / C                          e = 2 (z - onehot(y)) / C
 *
 * so |dloss/dW| = |e| |a|, known without forming the gradient. Subtracting max z keeps every exponential within (0, 1].
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "head.h"
#include "kernels/head_tiles.h"

enum sweep { MEASURE, COLLECT, CORRECT };

#define NORM_FLOOR 1e-6f /* added to the norm by torch's clip_grad_norm_ */

/* What a layer reads: int8 features, or the real numbers of the layer before. */
struct source {
    const int8_t *features; /* or NULL */
    const float *values;
    float scale;
    int32_t zero_point;
};

struct layer {
    struct source source;
    uint32_t inputs, outputs;
    size_t start;       /* of its weights among the parameters; the bias follows them */
    const float *error; /* f32[outputs]: gradient with respect to its outputs */
};

struct span {
    size_t first, count;
};

static float element(const struct source *source, uint32_t index) {
    return source->features != NULL ? (float)(source->features[index] - source->zero_point) * source->scale
                                    : source->values[index];
}

/* factor * a[first..first + 8) */
static void load_tile(const struct source *source, uint32_t first, float factor, float tile[FEDMOTE_TILE]) {
    if (source->features == NULL) {
        for (uint32_t j = 0; j < FEDMOTE_TILE; j++) {
            tile[j] = factor * source->values[first + j];
        }
        return;
    }
    const int8_t *features = source->features + first;
    const int32_t zero_point = source->zero_point;
    factor *= source->scale;
    for (uint32_t j = 0; j < FEDMOTE_TILE; j += 4) {
        tile[j] = factor * (float)(features[j] - zero_point);
        tile[j + 1] = factor * (float)(features[j + 1] - zero_point);
        tile[j + 2] = factor * (float)(features[j + 2] - zero_point);
        tile[j + 3] = factor * (float)(features[j + 3] - zero_point);
    }
}

/* z = W a + b */
static void forward(const struct source *source, const float *weights, uint32_t inputs, uint32_t outputs, float *z) {
    float tile[FEDMOTE_TILE];
    uint32_t i = 0;
    memcpy(z, weights + (size_t)inputs * outputs, outputs * sizeof *z);
    for (; i + FEDMOTE_TILE <= inputs; i += FEDMOTE_TILE) {
        load_tile(source, i, 1.0f, tile);
        fedmote_tile_multiply(weights + i, inputs, tile, z, outputs);
    }
    for (; i < inputs; i++) {
        const float a = element(source, i);
        for (uint32_t c = 0; c < outputs; c++) {
            z[c] += weights[(size_t)c * inputs + i] * a;
        }
    }
}

/* target[c][i] += factor * error[c] * a[i], where target is laid out as the weights. */
static void add_outer(const struct layer *layer, float factor, float *target) {
    const uint32_t inputs = layer->inputs;
    float tile[FEDMOTE_TILE];
    uint32_t i = 0;
    for (; i + FEDMOTE_TILE <= inputs; i += FEDMOTE_TILE) {
        load_tile(&layer->source, i, factor, tile);
        fedmote_tile_add(target + i, inputs, tile, layer->error, layer->outputs);
    }
    for (; i < inputs; i++) {
        const float a = factor * element(&layer->source, i);
        for (uint32_t c = 0; c < layer->outputs; c++) {
            target[(size_t)c * inputs + i] += layer->error[c] * a;
        }
    }
}

/* y += factor * x over n elements */
static void add_scaled(float *y, float factor, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] += factor * x[i];
    }
}

static void scale(float *y, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] *= factor;
    }
}

/* Sums of 32 squares each, so that the error of the sum stays that of a short one. */
static float square_of(const float *values, size_t count) {
    float sum = 0.0f;
    while (count > 0U) {
        float part = 0.0f;
        const float *const end = values + (count < 32U ? count : 32U);
        count -= (size_t)(end - values);
        while (values != end) {
            part += *values * *values;
            values++;
        }
        sum += part;
    }
    return sum;
}

static float square_of_source(const struct source *source, uint32_t count) {
    if (source->features == NULL) {
        return square_of(source->values, count);
    }
    float sum = 0.0f; /* of integers */
    for (uint32_t i = 0; i < count; i++) {
        const int32_t a = source->features[i] - source->zero_point;
        sum += (float)(a * a);
    }
    return sum * source->scale * source->scale;
}

/* e^x for x <= 0, to a few units in the last place: 2^k times a Taylor series on [-ln 2 / 2, ln 2 / 2]. Less code and
 * fewer instructions than expf(), which has to handle everything else as well. */
static float exponential(float x) {
    if (!(x > -87.0f)) {
        return 0.0f;
    }
    const int32_t k = (int32_t)(x * 1.44269504f - 0.5f);
    /* ln 2 in two parts, the first of which is exact times any k. */
    const float r = (x - (float)k * 0.693359375f) + (float)k * 2.12194440e-4f;
    const float series =
        1.0f +
        r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r / 5040))))));
    const uint32_t bits = (uint32_t)(k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

/* Turns logits z into dloss/dz in place and returns the loss. */
static float cross_entropy(float *z, uint32_t outputs, uint32_t label) {
    float highest = z[0];
    for (uint32_t c = 1; c < outputs; c++) {
        highest = z[c] > highest ? z[c] : highest;
    }
    const float label_margin = z[label] - highest;
    float sum = 0.0f;
    uint32_t c = 0;
    do { /* at least one output, and the highest gives 1 */
        z[c] = exponential(z[c] - highest);
        sum += z[c];
    } while (++c < outputs);
    scale(z, 1.0f / sum, outputs);
    z[label] -= 1.0f;
    return logf(sum) - label_margin;
}

static float squared_error(float *z, uint32_t outputs, uint32_t label) {
    z[label] -= 1.0f;
    const float loss = square_of(z, outputs) / (float)outputs;
    scale(z, 2.0f / (float)outputs, outputs);
    return loss;
}

static struct source features_source(const struct fedmote_head_shape *shape, const int8_t *features) {
    return (struct source){features, NULL, shape->feature_scale, shape->feature_zero_point};
}

/* Through the first of two layers. */
static struct source hidden_source(const struct fedmote_head_shape *shape, const float *parameters,
                                   const struct source *source, float *hidden) {
    forward(source, parameters, shape->inputs, shape->hidden, hidden);
    for (uint32_t j = 0; shape->is_relu && j < shape->hidden; j++) {
        hidden[j] = hidden[j] > 0.0f ? hidden[j] : 0.0f;
    }
    return (struct source){NULL, hidden, 1.0f, 0};
}

static size_t last_start(const struct fedmote_head_shape *shape) {
    return shape->hidden == 0U ? 0U : ((size_t)shape->inputs + 1U) * shape->hidden;
}

void fedmote_head_logits(const struct fedmote_head_shape *shape, const float *parameters, const int8_t *features,
                         float *hidden, float *logits) {
    struct source source = features_source(shape, features);
    uint32_t inputs = shape->inputs;
    if (shape->hidden > 0U) {
        source = hidden_source(shape, parameters, &source, hidden);
        inputs = shape->hidden;
    }
    forward(&source, parameters + last_start(shape), inputs, shape->outputs, logits);
}

void fedmote_head_input_gradient(const float *weights, uint32_t inputs, uint32_t outputs, const float *output_error,
                                 float *input_error) {
    memset(input_error, 0, inputs * sizeof *input_error);
    for (uint32_t c = 0; c < outputs; c++, weights += inputs) {
        add_scaled(input_error, output_error[c], weights, inputs);
    }
}

/* Forward and backward through one sample: its loss, and the trained layers with the errors of their outputs, the last
 * layer first. Scratch: error of the outputs, hidden values, errors of the hidden units. */
static float run(const struct fedmote_head *head, const int8_t *features, uint32_t label, struct layer layers[2]) {
    const struct fedmote_head_shape *shape = &head->shape;
    const float *parameters = head->parameters;
    float *error = head->scratch;
    float *hidden = error + shape->outputs;
    float *hidden_error = hidden + shape->hidden;
    fedmote_head_logits(shape, parameters, features, hidden, error);
    const float loss = head->training.loss == FEDMOTE_LOSS_SQUARED_ERROR ? squared_error(error, shape->outputs, label)
                                                                         : cross_entropy(error, shape->outputs, label);
    layers[1] = (struct layer){features_source(shape, features), shape->inputs, shape->hidden, 0U, hidden_error};
    layers[0] = layers[1];
    layers[0].outputs = shape->outputs;
    layers[0].error = error;
    if (shape->hidden > 0U) {
        const size_t start = last_start(shape);
        layers[0] = (struct layer){{NULL, hidden, 1.0f, 0}, shape->hidden, shape->outputs, start, error};
        if (fedmote_head_trained_layers(head) > 1U) {
            fedmote_head_input_gradient(parameters + start, shape->hidden, shape->outputs, error, hidden_error);
            for (uint32_t j = 0; shape->is_relu && j < shape->hidden; j++) {
                hidden_error[j] = hidden[j] > 0.0f ? hidden_error[j] : 0.0f;
            }
        }
    }
    return loss;
}

/* target += factor * gradient */
static void add_gradient(const struct fedmote_head *head, const struct layer layers[2], float factor, float *target) {
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        const struct layer *layer = &layers[i];
        if (!head->training.is_bias_only) {
            add_outer(layer, factor, target + layer->start);
        }
        add_scaled(target + layer->start + (size_t)layer->inputs * layer->outputs, factor, layer->error,
                   layer->outputs);
    }
}

/* |gradient|^2 of one sample */
static float square_of_gradient(const struct fedmote_head *head, const struct layer layers[2]) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        const float source = head->training.is_bias_only ? 0.0f : square_of_source(&layers[i].source, layers[i].inputs);
        sum += square_of(layers[i].error, layers[i].outputs) * (source + 1.0f);
    }
    return sum;
}

/* gradient . velocity of one sample. Only clipping with momentum needs it: short rather than fast. */
static float product_with_velocity(const struct fedmote_head *head, const struct layer layers[2]) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        const struct layer *layer = &layers[i];
        const float *velocity = (const float *)head->velocity + layer->start;
        const float *bias = velocity + (size_t)layer->inputs * layer->outputs;
        for (uint32_t c = 0; c < layer->outputs; c++, velocity += layer->inputs) {
            float row = bias[c];
            for (uint32_t j = 0; !head->training.is_bias_only && j < layer->inputs; j++) {
                row += velocity[j] * element(&layer->source, j);
            }
            sum += row * layer->error[c];
        }
    }
    return sum;
}

/* The trained parameters as one or two runs; returns their number. */
static uint32_t trained_spans(const struct fedmote_head *head, struct span spans[2]) {
    const struct fedmote_head_shape *shape = &head->shape;
    const size_t all = (size_t)fedmote_head_parameters(shape);
    const bool is_first_trained = fedmote_head_trained_layers(head) > 1U;
    spans[0].first = is_first_trained ? 0U : last_start(shape);
    spans[0].count = all - spans[0].first;
    if (!head->training.is_bias_only) {
        return 1U;
    }
    spans[0] = (struct span){all - shape->outputs, shape->outputs};
    spans[1] = (struct span){(size_t)shape->inputs * shape->hidden, shape->hidden};
    return is_first_trained ? 2U : 1U;
}

static float square_of_velocity(const struct fedmote_head *head) {
    struct span spans[2];
    float sum = 0.0f;
    for (uint32_t i = trained_spans(head, spans); i-- > 0U;) {
        sum += square_of((const float *)head->velocity + spans[i].first, spans[i].count);
    }
    return sum;
}

static void scale_trained(const struct fedmote_head *head, float *values, float factor) {
    struct span spans[2];
    for (uint32_t i = trained_spans(head, spans); i-- > 0U;) {
        scale(values + spans[i].first, factor, spans[i].count);
    }
}

static float real(uint32_t micro) { return (float)micro / 1e6f; }

/* What clipping multiplies a gradient with. */
static float clip_factor(const struct fedmote_head *head, float square) {
    const float factor = real(head->training.clip_norm_micro) / (sqrtf(square > 0.0f ? square : 0.0f) + NORM_FLOOR);
    return factor < 1.0f ? factor : 1.0f;
}

static bool is_clipping(const struct fedmote_head *head) { return head->training.clip_norm_micro > 0U; }

static bool is_in_place(const struct fedmote_head *head) {
    return !fedmote_head_needs_velocity(&head->training, head->batch_size);
}

static void begin(struct fedmote_head *head, const float *base) {
    const size_t bytes = (size_t)fedmote_head_parameters(&head->shape) * sizeof(float);
    memcpy(head->parameters, base, bytes);
    if (head->velocity != NULL) {
        memset(head->velocity, 0, bytes);
    }
}

static float sample_loss(struct fedmote_head *head, const int8_t *features, uint32_t label, float *norm) {
    struct layer layers[2];
    const float loss = run(head, features, label, layers);
    if (norm != NULL) {
        *norm = sqrtf(square_of_source(&layers[0].source, layers[0].inputs)) *
                sqrtf(square_of(layers[0].error, layers[0].outputs));
    }
    return loss;
}

static void batch_begin(struct fedmote_head *head, uint32_t batch_size) {
    head->batch_size = batch_size;
    head->sweep = COLLECT;
    head->is_counting = true;
    if (!is_in_place(head) && is_clipping(head) && batch_size > 1U) {
        head->state.velocity_square = square_of_velocity(head);
        head->state.product = 0.0f;
        if (head->state.velocity_square > 0.0f) {
            head->sweep = MEASURE;
            head->is_counting = false;
        }
    }
}

static float batch_add(struct fedmote_head *head, const int8_t *features, uint32_t label) {
    struct layer layers[2];
    const float loss = run(head, features, label, layers);
    float share = 1.0f / (float)head->batch_size;
    if (head->sweep == MEASURE) {
        head->state.product += share * product_with_velocity(head, layers);
        return loss;
    }
    if (head->sweep == CORRECT) {
        share = head->state.correction;
    } else if (is_clipping(head) && head->batch_size == 1U) {
        share = clip_factor(head, square_of_gradient(head, layers));
    }
    float *target = head->velocity;
    if (is_in_place(head)) {
        const float rate = real(head->training.learning_rate_micro);
        target = head->parameters;
        share *= -rate;
        if (head->training.weight_decay_micro > 0U) {
            scale_trained(head, target, 1.0f - rate * real(head->training.weight_decay_micro));
        }
    }
    add_gradient(head, layers, share, target);
    return loss;
}

/* The norm of the collected gradient is known: clips it, or says by which share of each sample it is too much. */
static bool clip(struct fedmote_head *head) {
    const float before = head->state.velocity_square;
    const float factor = clip_factor(head, square_of_velocity(head) - before - 2.0f * head->state.product);
    if (factor < 1.0f && before > 0.0f) {
        head->state.correction = (factor - 1.0f) / (float)head->batch_size;
        head->sweep = CORRECT;
        head->is_counting = false;
        return true;
    }
    scale_trained(head, head->velocity, factor);
    return false;
}

/* The step itself; the velocity is left as the mini-batch to come needs it. */
static void apply(const struct fedmote_head *head, struct span span) {
    const float rate = real(head->training.learning_rate_micro), decay = real(head->training.weight_decay_micro);
    const float momentum = real(head->training.momentum_micro);
    float *velocity = (float *)head->velocity + span.first;
    float *parameters = (float *)head->parameters + span.first;
    for (size_t i = 0; i < span.count; i++) {
        const float step = velocity[i] + decay * parameters[i];
        parameters[i] -= rate * step;
        velocity[i] = momentum * step;
    }
}

static bool batch_end(struct fedmote_head *head) {
    if (is_in_place(head)) {
        return false;
    }
    if (head->sweep == MEASURE) {
        head->sweep = COLLECT;
        head->is_counting = true;
        return true;
    }
    if (head->sweep == COLLECT && is_clipping(head) && head->batch_size > 1U && clip(head)) {
        return true;
    }
    struct span spans[2];
    for (uint32_t i = trained_spans(head, spans); i-- > 0U;) {
        apply(head, spans[i]);
    }
    return false;
}

static float delta(const struct fedmote_head *head, const float *base, uint32_t index) {
    return ((const float *)head->parameters)[index] - base[index];
}

const struct fedmote_arithmetic fedmote_float32 = {
    .parameter_bytes = sizeof(float),
    .begin = begin,
    .loss = sample_loss,
    .batch_begin = batch_begin,
    .batch_add = batch_add,
    .batch_end = batch_end,
    .delta = delta,
};
