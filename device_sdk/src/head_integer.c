/* SPDX-License-Identifier: Apache-2.0
 *
 * The head in integers, for a core without FPU. Loops over weights, features and outputs hold no float; a few scalars
 * do (learning rate times scale once per round, the norm of a gradient where it is clipped), in an order of operations
 * that a compiler may not change, so that a host computes the same bits.
 *
 * Numbers. A parameter is 16 bits with a power of two common to its array (the weights, or the bias, of a layer): real
 * = value * 2^-exponent. `bound` says how large the values of an array can be by now; where the next step could leave
 * the room, the values are looked at, and halved together with the exponent if need be: nothing in a hot loop
 * saturates. Values are stored with 32768 added, so that a 16-bit load needs no sign extension: a dot product takes
 * 32768 times the sum of the features off again, modulo 2^32. An array may grow to 2^31 / (255 * inputs), so that sums
 * fit 32 bits.
 *
 * Rounding. A step is far below one unit of a weight. Cut off it would be lost, so every change is rounded up or down
 * at random, with the probability of its fraction: on the average nothing is lost, and no residue has to be stored.
 * What is added before cutting is r[i] = r0 + i * 0x9E37 modulo 2^16, evenly spread over the features, from a start
 * that a counter-based generator draws for each sample and group of rows: the same counter, the same bits.
 *
 * Order. Rows are kept in groups of four whose weights stand side by side, [outputs / 4][inputs][4], the rest in a
 * group of its own: a feature is loaded once for four weights. A hidden layer's values become 8-bit features for the
 * last layer, with a power of two as the scale that suits the sample.
 *
 * Errors dloss/dz are Q15, logits Q16. The exponential is 2^-(integer part) times a table of 2^-(k / 64), interpolated.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "head.h"
#include "kernels/head_rows.h"
#include "select.h"

enum sweep { MEASURE, COLLECT, CORRECT };

#define ROWS FEDMOTE_ROWS
#define OFFSET 32768U
#define FRACTION FEDMOTE_CHANGE_FRACTION /* where a change goes straight into the parameter */
#define VELOCITY_FRACTION 12
#define VELOCITY_MAX (1 << 29)
#define HEADROOM 8.0f
#define SMALLEST 0.015625f /* parameters of zero get the scale of this */
#define NORM_FLOOR 1e-6f
#define LOGIT_MAX (1 << 29)

/* round(2^15 * 2^-(k / 64)) */
static const uint16_t powers[65] = {32768, 32415, 32066, 31720, 31379, 31041, 30706, 30376, 30048, 29725, 29405,
                                    29088, 28774, 28464, 28158, 27855, 27554, 27258, 26964, 26674, 26386, 26102,
                                    25821, 25543, 25268, 24995, 24726, 24460, 24196, 23936, 23678, 23423, 23170,
                                    22921, 22674, 22430, 22188, 21949, 21713, 21479, 21247, 21019, 20792, 20568,
                                    20347, 20127, 19911, 19696, 19484, 19274, 19066, 18861, 18658, 18457, 18258,
                                    18061, 17867, 17674, 17484, 17296, 17109, 16925, 16743, 16562, 16384};

/* A positive real number as mantissa * 2^-shift, mantissa in [2^13, 2^14); zero has mantissa 0. */
struct scaled {
    int32_t mantissa, shift;
};

struct numbers {
    uint16_t *values; /* 32768 added */
    int32_t *velocity;
    uint32_t count;
    int16_t *exponent;
    uint32_t *bound;
    uint32_t limit;
};

struct layer {
    const int8_t *features;
    int32_t zero_point;
    struct scaled scale; /* of the features */
    uint32_t inputs, outputs;
    uint32_t start; /* of its weights among the parameters; the bias follows them */
    int32_t *error; /* Q15[outputs] */
    int32_t *words; /* room for its features as words, shared by the layers */
    struct fedmote_head_scaling *scaling;
};

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

static struct scaled scaled_from(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    struct scaled result = {0, 0};
    const int32_t exponent = (int32_t)(bits >> 23 & 0xFFU) - 127;
    if (exponent > -127) {
        result.mantissa = (int32_t)(((bits & 0x7FFFFFU) + 0x800000U + 0x200U) >> 10);
        result.shift = 13 - exponent;
        if (result.mantissa == 1 << 14) {
            result.mantissa = 1 << 13;
            result.shift--;
        }
    }
    return result;
}

/* 2^exponent */
static float power_of_two(int32_t exponent) {
    exponent = exponent < -126 ? -126 : exponent > 127 ? 127 : exponent;
    const uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int32_t clamp(int32_t value, int32_t limit) { return value > limit ? limit : value < -limit ? -limit : value; }

/* value * 2^-shift, rounded down, held within the limit (a power of two). */
static int32_t shifted(int32_t value, int32_t shift, int32_t limit) {
    if (shift >= 0) {
        return clamp(value >> (shift < 31 ? shift : 31), limit);
    }
    if (shift < -30) {
        return value == 0 ? 0 : value > 0 ? limit : -limit;
    }
    const int32_t most = limit >> -shift;
    return value > most ? limit : value < -most ? -limit : (int32_t)((uint32_t)value << -shift);
}

/* error * factor * 2^fraction rounded at random: what one unit of a feature changes, held within the limit. */
static int32_t share_of(int32_t error, struct scaled factor, int32_t fraction, uint32_t random, int32_t limit) {
    int32_t shift = factor.shift + 15 - fraction;
    while (error > 65536 || error < -65536) {
        error >>= 1; // cppcheck-suppress shiftNegativeLHS ; the sign is kept, see requantize.h
        shift--;
    }
    int32_t product = error * factor.mantissa;
    if (shift > 30) {
        return 0;
    }
    if (shift > 0) {
        product = (product + (int32_t)(random >> (32 - shift))) >> shift;
        shift = 0;
    }
    return shifted(product, shift, limit);
}

static uint32_t magnitude(int32_t value) { return value < 0 ? 0U - (uint32_t)value : (uint32_t)value; }

static uint32_t largest(const int32_t *values, uint32_t count) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t size = magnitude(values[i]);
        most = size > most ? size : most;
    }
    return most;
}

static uint32_t draw(struct fedmote_head *head) {
    return fedmote_mix(head->training.seed + ++head->state.counter * 0x9E3779B9U);
}

/* ---- arrays of parameters -----------------------------------------------------------------------------------------
 */

static struct numbers weights_of(const struct fedmote_head *head, const struct layer *layer) {
    struct numbers numbers = {(uint16_t *)head->parameters + layer->start,
                              (int32_t *)head->velocity + layer->start,
                              layer->inputs * layer->outputs,
                              &layer->scaling->weight_exponent,
                              &layer->scaling->weight_bound,
                              layer->scaling->weight_limit};
    return numbers;
}

static struct numbers bias_of(const struct fedmote_head *head, const struct layer *layer) {
    struct numbers numbers = weights_of(head, layer);
    numbers.values += numbers.count;
    numbers.velocity += numbers.count;
    numbers.count = layer->outputs;
    numbers.exponent = &layer->scaling->bias_exponent;
    numbers.bound = &layer->scaling->bias_bound;
    numbers.limit = OFFSET - 1U;
    return numbers;
}

/* Half the numbers, twice the unit. What a velocity holds stays the same change. */
static void halve(struct fedmote_head *head, const struct numbers *numbers, bool has_velocity) {
    uint32_t random = draw(head);
    for (uint32_t i = 0; i < numbers->count; i++) {
        const int32_t value = (int32_t)numbers->values[i] - (int32_t)OFFSET;
        random += 0x9E3779B9U;
        numbers->values[i] = (uint16_t)(((value + (int32_t)(random >> 31)) >> 1) + (int32_t)OFFSET);
        if (has_velocity) {
            numbers->velocity[i] >>= 1;
        }
    }
    (*numbers->exponent)--;
    *numbers->bound = *numbers->bound / 2U + 1U;
}

/* Whether no value leaves its room if it changes by up to `change`. Where the bound does not tell, it looks, and then
 * wants half of the room to be free, so that it need not look again soon. */
static bool has_room(const struct numbers *numbers, uint32_t change) {
    if (*numbers->bound + change <= numbers->limit) {
        return true;
    }
    *numbers->bound = fedmote_rows_largest(numbers->values, numbers->count);
    return *numbers->bound + change <= numbers->limit && *numbers->bound <= numbers->limit / 2U;
}

/* ---- rows of weights ----------------------------------------------------------------------------------------------
 */

static void add_to_velocity(int32_t *velocity, uint32_t rows, const int8_t *features, int32_t zero_point,
                            uint32_t inputs, const int32_t shares[ROWS]) {
    for (uint32_t i = 0; i < inputs; i++) {
        const int32_t x = features[i] - zero_point;
        for (uint32_t row = 0; row < rows; row++) {
            *velocity++ += shares[row] * x;
        }
    }
}

/* Features without zero point, a word each, and their sum modulo 2^32: both passes over the weights read them. */
static uint32_t load_words(const struct layer *layer) {
    const int8_t *features = layer->features;
    const int32_t zero_point = layer->zero_point;
    uint32_t total = 0;
    for (int32_t *word = layer->words, *const end = word + layer->inputs; word != end; word++) {
        const int32_t value = *features++ - zero_point;
        *word = value;
        total += (uint32_t)value;
    }
    return total;
}

/* z Q16[outputs] = W a + b */
static void forward(const struct fedmote_head *head, const struct layer *layer, int32_t *z) {
    const struct numbers weights = weights_of(head, layer), bias = bias_of(head, layer);
    const int32_t shift = layer->scale.shift + *weights.exponent - 31;
    const uint32_t total = load_words(layer);
    const uint16_t *group = weights.values;
    for (uint32_t c = 0; c < layer->outputs; c += ROWS, group += (size_t)ROWS * layer->inputs) {
        const uint32_t rows = layer->outputs - c < ROWS ? layer->outputs - c : ROWS;
        uint32_t sums[ROWS];
        fedmote_rows_multiply(group, rows, layer->words, layer->inputs, sums);
        for (uint32_t row = 0; row < rows; row++) {
            const int32_t sum = (int32_t)(sums[row] - OFFSET * total);
            const int32_t product =
                (sum >> 15) * layer->scale.mantissa + (((sum & 0x7FFF) * layer->scale.mantissa) >> 15);
            z[c + row] = shifted(product, shift, LOGIT_MAX) +
                         shifted((int32_t)bias.values[c + row] - (int32_t)OFFSET, *bias.exponent - 16, LOGIT_MAX);
        }
    }
}

/* ---- losses -------------------------------------------------------------------------------------------------------
 */

/* e^-difference in Q25; the difference is Q16 and not negative. */
static uint32_t exponential(uint32_t difference) {
    if (difference >= 16U << 16) {
        return 0U;
    }
    const uint32_t power = (difference >> 4) * 23637U; /* times log2(e) in Q14: Q26 */
    const uint32_t index = power >> 20 & 63U, rest = power >> 10 & 1023U;
    const uint32_t value = ((uint32_t)powers[index] << 10) - (uint32_t)(powers[index] - powers[index + 1U]) * rest;
    return value >> (power >> 26);
}

/* ln(sum) - ln(2^25) in Q16, for sums from 2^25 on: the power of two below, and how far from there in halved steps. */
static int32_t logarithm(uint64_t sum) {
    uint32_t whole = 0;
    while (sum >= UINT64_C(1) << 26) {
        sum >>= 1;
        whole++;
    }
    uint32_t rest = (uint32_t)sum; /* in [2^25, 2^26) */
    uint32_t log2 = whole << 16;
    for (uint32_t bit = 1U << 15; bit > 0U; bit >>= 1) {
        rest = (rest >> 10) * (rest >> 10) >> 5; /* squared: the logarithm doubles */
        if (rest >= 1U << 26) {
            rest >>= 1;
            log2 += bit;
        }
    }
    return (int32_t)((log2 >> 4) * 2839U >> 8); /* times ln 2 in Q12 */
}

/* Turns logits Q16 into errors Q15 in place and returns the loss in Q16. */
static int32_t cross_entropy(int32_t *z, uint32_t outputs, uint32_t label) {
    int32_t highest = z[0];
    for (uint32_t c = 1; c < outputs; c++) {
        highest = z[c] > highest ? z[c] : highest;
    }
    const int32_t margin = highest - z[label];
    uint64_t sum = 0;
    uint32_t i = 0;
    do { /* at least one output, and the highest gives the largest value */
        const uint32_t value = exponential((uint32_t)(highest - z[i]));
        z[i] = (int32_t)(value >> 10);
        sum += value;
    } while (++i < outputs);
    const int32_t loss = margin + logarithm(sum);
    uint32_t shift = 6;
    while (sum >= 65536U) {
        sum >>= 1;
        shift++;
    }
    const uint32_t inverse = 0x80000000U / (uint32_t)sum;
    for (uint32_t c = 0; c < outputs; c++) {
        const uint32_t product = (uint32_t)z[c] * inverse;
        z[c] = (int32_t)(((product >> (shift - 1U)) + 1U) >> 1);
    }
    z[label] -= 1 << 15;
    return loss;
}

/* 2 (z - onehot) / outputs; the loss is that of the errors: |error|^2 * outputs / 4. */
static int32_t squared_error(int32_t *z, uint32_t outputs, uint32_t label) {
    uint64_t square = 0;
    z[label] -= 1 << 16;
    for (uint32_t c = 0; c < outputs; c++) {
        square += (uint64_t)((int64_t)z[c] * z[c]);
        z[c] = z[c] / (int32_t)outputs; /* Q16 of half an error is Q15 of the error */
    }
    const uint64_t loss = (square >> 16) / outputs;
    return loss < INT32_MAX ? (int32_t)loss : INT32_MAX;
}

/* ---- one sample ---------------------------------------------------------------------------------------------------
 */

static struct layer first_layer(struct fedmote_head *head, const int8_t *features) {
    const struct fedmote_head_shape *shape = &head->shape;
    return (struct layer){.features = features,
                          .zero_point = shape->feature_zero_point,
                          .scale = scaled_from(shape->feature_scale),
                          .inputs = shape->inputs,
                          .outputs = shape->hidden == 0U ? shape->outputs : shape->hidden,
                          .error = head->scratch,
                          .words = (int32_t *)head->scratch + shape->outputs + 2U * shape->hidden,
                          .scaling = &head->state.scaling[0]};
}

/* Hidden values Q16 as features: a ReLU leaves 8 bits above zero point -128, else there are 7 bits and a sign. */
static void quantize_hidden(const struct fedmote_head *head, const int32_t *z, int8_t *features, struct layer *layer) {
    const bool is_relu = head->shape.is_relu;
    uint32_t most = 1;
    for (uint32_t j = 0; j < head->shape.hidden; j++) {
        const uint32_t size = is_relu && z[j] < 0 ? 0U : magnitude(z[j]);
        most = size > most ? size : most;
    }
    int32_t shift = 0;
    while (most >> shift > (is_relu ? 254U : 126U)) {
        shift++;
    }
    const int32_t half = shift > 0 ? 1 << (shift - 1) : 0;
    for (uint32_t j = 0; j < head->shape.hidden; j++) {
        const int32_t value = (z[j] + half) >> shift;
        /* Where the ReLU is open something must be left, because the way back looks for it. */
        features[j] = (int8_t)(!is_relu ? value : z[j] <= 0 ? -128 : value > 1 ? value - 128 : -127);
    }
    layer->features = features;
    layer->zero_point = is_relu ? -128 : 0;
    layer->scale = (struct scaled){1 << 13, 13 + 16 - shift};
}

/* error Q15[inputs] of the inputs of a layer = W^T error */
static void input_gradient(const struct fedmote_head *head, const struct layer *layer, int32_t *input_error) {
    const struct numbers weights = weights_of(head, layer);
    uint32_t total = 0;
    int32_t shift = 0;
    for (uint32_t c = 0; c < layer->outputs; c++) {
        total += magnitude(layer->error[c]) >> 8;
    }
    while (total >> shift > 128U - layer->outputs / 256U) {
        shift++;
    }
    const int32_t half = shift > 0 ? 1 << (shift - 1) : 0;
    for (uint32_t j = 0; j < layer->inputs; j++) {
        int32_t sum = 0;
        const uint16_t *group = weights.values;
        for (uint32_t c = 0; c < layer->outputs; c += ROWS, group += (size_t)ROWS * layer->inputs) {
            const uint32_t rows = layer->outputs - c < ROWS ? layer->outputs - c : ROWS;
            for (uint32_t row = 0; row < rows; row++) {
                const int32_t weight = (int32_t)group[(size_t)j * rows + row] - (int32_t)OFFSET;
                sum += ((layer->error[c + row] + half) >> shift) * weight;
            }
        }
        input_error[j] = shifted(sum, *weights.exponent - shift, 1 << 29);
    }
}

/* Forward and backward: the loss in Q16, and the trained layers with the errors of their outputs, the last one first.
 */
static int32_t run(struct fedmote_head *head, const int8_t *features, uint32_t label, struct layer layers[2]) {
    const struct fedmote_head_shape *shape = &head->shape;
    int32_t *error = head->scratch;
    layers[0] = first_layer(head, features);
    if (shape->hidden > 0U) {
        int8_t *hidden = (int8_t *)(error + shape->outputs);
        layers[1] = layers[0];
        layers[1].error = error + shape->outputs + shape->hidden;
        forward(head, &layers[1], layers[1].error);
        quantize_hidden(head, layers[1].error, hidden, &layers[0]);
        layers[0].inputs = shape->hidden;
        layers[0].outputs = shape->outputs;
        layers[0].start = (shape->inputs + 1U) * shape->hidden;
        layers[0].scaling = &head->state.scaling[1];
    }
    forward(head, &layers[0], error);
    const int32_t loss = head->training.loss == FEDMOTE_LOSS_SQUARED_ERROR
                             ? squared_error(error, shape->outputs, label)
                             : cross_entropy(error, shape->outputs, label);
    if (fedmote_head_trained_layers(head) > 1U) {
        input_gradient(head, &layers[0], layers[1].error);
        for (uint32_t j = 0; shape->is_relu && j < shape->hidden; j++) {
            layers[1].error[j] = layers[0].features[j] == -128 ? 0 : layers[1].error[j];
        }
    }
    return loss;
}

/* ---- changes ------------------------------------------------------------------------------------------------------
 */

static float real(uint32_t micro) { return (float)micro / 1e6f; }

static bool is_clipping(const struct fedmote_head *head) { return head->training.clip_norm_micro > 0U; }

static bool is_in_place(const struct fedmote_head *head) {
    return !fedmote_head_needs_velocity(&head->training, head->batch_size);
}

/* What an error is multiplied with to become a change of the numbers: minus signs are the callers'. */
static struct scaled change_of(struct scaled factor, const struct numbers *numbers) {
    factor.shift -= *numbers->exponent;
    return factor;
}

/* Makes room for changes of up to most * factor per unit of the features. */
static void make_room(struct fedmote_head *head, const struct numbers *numbers, struct scaled factor, uint32_t most,
                      int32_t reach, int32_t limit) {
    for (;;) {
        const int32_t share = share_of((int32_t)most, change_of(factor, numbers), FRACTION, UINT32_MAX, limit);
        const uint32_t change = (uint32_t)(((uint32_t)share * (uint32_t)reach) >> FRACTION) + 1U;
        if (has_room(numbers, change)) {
            *numbers->bound += change;
            return;
        }
        halve(head, numbers, false);
    }
}

/* parameters -= factor * gradient of one sample, the factor that of the errors. */
static void change_layer(struct fedmote_head *head, const struct layer *layer, struct scaled factor) {
    const int32_t limit = 1 << 22; /* times features of 8 bits and a sign stays below 2^30 */
    const uint32_t most = largest(layer->error, layer->outputs);
    if (!head->training.is_bias_only) {
        const struct numbers weights = weights_of(head, layer);
        struct scaled product = {factor.mantissa * layer->scale.mantissa >> 13, factor.shift + layer->scale.shift - 13};
        if (product.mantissa >= 1 << 14) {
            product.mantissa >>= 1;
            product.shift--;
        }
        make_room(head, &weights, product, most, 255, limit);
        product = change_of(product, &weights);
        uint32_t random = draw(head);
        if (fedmote_head_trained_layers(head) > 1U && layer->start == 0U) {
            (void)load_words(layer); /* those of the last layer lie there */
        }
        uint16_t *group = weights.values;
        for (uint32_t c = 0; c < layer->outputs; c += ROWS, group += (size_t)ROWS * layer->inputs) {
            const uint32_t rows = layer->outputs - c < ROWS ? layer->outputs - c : ROWS;
            int32_t shares[ROWS] = {0};
            for (uint32_t row = 0; row < rows; row++) {
                random += 0x9E3779B9U;
                shares[row] = share_of(-layer->error[c + row], product, FRACTION, random, limit);
            }
            fedmote_rows_add(group, rows, layer->words, layer->inputs, shares, random >> 16);
        }
    }
    const struct numbers bias = bias_of(head, layer);
    make_room(head, &bias, factor, most, 1, 1 << 29);
    factor = change_of(factor, &bias);
    uint32_t random = draw(head);
    for (uint32_t c = 0; c < layer->outputs; c++) {
        random += 0x9E3779B9U;
        const int32_t share = share_of(-layer->error[c], factor, FRACTION, random, 1 << 29);
        const int32_t change = (share + (int32_t)(random & 0xFFFFU)) >> FRACTION;
        bias.values[c] = (uint16_t)(bias.values[c] + (uint32_t)change);
    }
}

/* velocity -= factor * gradient of one sample. */
static void collect_layer(struct fedmote_head *head, const struct layer *layer, struct scaled factor, int32_t sign) {
    const int32_t limit = (1 << 20) / (int32_t)head->batch_size;
    uint32_t random = draw(head);
    if (!head->training.is_bias_only) {
        const struct numbers weights = weights_of(head, layer);
        struct scaled product = {factor.mantissa * layer->scale.mantissa >> 13, factor.shift + layer->scale.shift - 13};
        if (product.mantissa >= 1 << 14) {
            product.mantissa >>= 1;
            product.shift--;
        }
        product = change_of(product, &weights);
        int32_t *group = weights.velocity;
        for (uint32_t c = 0; c < layer->outputs; c += ROWS, group += (size_t)ROWS * layer->inputs) {
            const uint32_t rows = layer->outputs - c < ROWS ? layer->outputs - c : ROWS;
            int32_t shares[ROWS] = {0};
            for (uint32_t row = 0; row < rows; row++) {
                random += 0x9E3779B9U;
                shares[row] = share_of(sign * layer->error[c + row], product, VELOCITY_FRACTION, random, limit);
            }
            add_to_velocity(group, rows, layer->features, layer->zero_point, layer->inputs, shares);
        }
    }
    const struct numbers bias = bias_of(head, layer);
    factor = change_of(factor, &bias);
    for (uint32_t c = 0; c < layer->outputs; c++) {
        random += 0x9E3779B9U;
        bias.velocity[c] += share_of(sign * layer->error[c], factor, VELOCITY_FRACTION, random, limit << 8);
    }
}

/* The trained arrays, without a sample: the last layer first, weights before bias. Returns their number, at most 4. */
static uint32_t trained_numbers(struct fedmote_head *head, struct numbers numbers[4]) {
    const struct fedmote_head_shape *shape = &head->shape;
    uint32_t count = 0;
    struct layer layer = first_layer(head, NULL);
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        if (shape->hidden > 0U) {
            const bool is_last = i == 0U;
            layer.inputs = is_last ? shape->hidden : shape->inputs;
            layer.outputs = is_last ? shape->outputs : shape->hidden;
            layer.start = is_last ? (shape->inputs + 1U) * shape->hidden : 0U;
            layer.scaling = &head->state.scaling[is_last ? 1 : 0];
        }
        if (!head->training.is_bias_only) {
            numbers[count++] = weights_of(head, &layer);
        }
        numbers[count++] = bias_of(head, &layer);
    }
    return count;
}

/* How much weight decay takes of a number, times 2^fraction, rounded at random. */
static int32_t decay_of(int32_t value, struct scaled decay, int32_t fraction, uint32_t random) {
    const int32_t shift = decay.shift - fraction;
    if (shift > 30) {
        return 0;
    }
    const int32_t product = value * decay.mantissa;
    return shift > 0 ? (product + (int32_t)(random >> (32 - shift))) >> shift : shifted(product, shift, 1 << 28);
}

static struct scaled decay_factor(const struct fedmote_head *head) {
    return scaled_from(real(head->training.learning_rate_micro) * real(head->training.weight_decay_micro));
}

static void decay_in_place(struct fedmote_head *head) {
    const struct scaled decay = decay_factor(head);
    struct numbers numbers[4];
    const uint32_t count = trained_numbers(head, numbers);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t random = draw(head);
        for (uint32_t k = 0; k < numbers[i].count; k++) {
            const int32_t value = (int32_t)numbers[i].values[k] - (int32_t)OFFSET;
            random += 0x9E3779B9U;
            const int32_t change = -decay_of(value, decay, VELOCITY_FRACTION, random);
            random += 0x9E3779B9U;
            const int32_t result = value + ((change + (int32_t)(random >> 20)) >> VELOCITY_FRACTION);
            numbers[i].values[k] = (uint16_t)(clamp(result, (int32_t)numbers[i].limit) + (int32_t)OFFSET);
        }
    }
}

/* ---- norms --------------------------------------------------------------------------------------------------------
 */

static float square_of_errors(const struct layer *layer) {
    uint64_t sum = 0;
    for (uint32_t c = 0; c < layer->outputs; c++) {
        sum += (uint64_t)((int64_t)layer->error[c] * layer->error[c]);
    }
    return (float)sum * power_of_two(-30);
}

static float square_of_features(const struct layer *layer) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < layer->inputs; i++) {
        const int32_t x = layer->features[i] - layer->zero_point;
        sum += (uint32_t)(x * x);
    }
    const float scale = (float)layer->scale.mantissa * power_of_two(-layer->scale.shift);
    return (float)sum * scale * scale;
}

static float square_of_gradient(const struct fedmote_head *head, const struct layer layers[2]) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        const float features = head->training.is_bias_only ? 0.0f : square_of_features(&layers[i]);
        sum += square_of_errors(&layers[i]) * (features + 1.0f);
    }
    return sum;
}

/* How far the velocities of an array are cut so that 15 bits are left. */
static int32_t cut_of(const struct numbers *numbers) {
    const uint32_t most = largest(numbers->velocity, numbers->count);
    int32_t cut = 0;
    while (most >> cut > 0x7FFFU) {
        cut++;
    }
    return cut;
}

/* |velocity / learning rate|^2, which is that of the gradient if nothing else is in it. */
static float square_of_velocity(struct fedmote_head *head) {
    const float rate = real(head->training.learning_rate_micro);
    struct numbers numbers[4];
    const uint32_t count = trained_numbers(head, numbers);
    float sum = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t cut = cut_of(&numbers[i]);
        uint64_t square = 0;
        for (uint32_t k = 0; k < numbers[i].count; k++) {
            const int32_t value = numbers[i].velocity[k] >> cut;
            square += (uint32_t)(value * value);
        }
        const float unit = power_of_two(cut - VELOCITY_FRACTION - *numbers[i].exponent) / rate;
        sum += (float)square * unit * unit;
    }
    return sum;
}

/* gradient . velocity / learning rate of one sample. */
static float product_with_velocity(struct fedmote_head *head, const struct layer layers[2]) {
    const float rate = real(head->training.learning_rate_micro);
    float sum = 0.0f;
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head); i++) {
        const struct layer *layer = &layers[i];
        const struct numbers weights = weights_of(head, layer), bias = bias_of(head, layer);
        int64_t product = 0;
        int32_t cut = cut_of(&bias);
        for (uint32_t c = 0; c < layer->outputs; c++) {
            product += (int64_t)(bias.velocity[c] >> cut) * layer->error[c];
        }
        sum += (float)product * power_of_two(cut - VELOCITY_FRACTION - 15 - *bias.exponent) / rate;
        if (head->training.is_bias_only) {
            continue;
        }
        cut = cut_of(&weights);
        product = 0;
        const int32_t *velocity = weights.velocity;
        for (uint32_t c = 0; c < layer->outputs; c += ROWS) {
            const uint32_t rows = layer->outputs - c < ROWS ? layer->outputs - c : ROWS;
            for (uint32_t j = 0; j < layer->inputs; j++) {
                for (uint32_t row = 0; row < rows; row++) {
                    const int32_t value = (*velocity++ >> cut) * (layer->features[j] - layer->zero_point);
                    product += (int64_t)value * layer->error[c + row];
                }
            }
        }
        const float scale = (float)layer->scale.mantissa * power_of_two(-layer->scale.shift);
        sum += (float)product * scale * power_of_two(cut - VELOCITY_FRACTION - 15 - *weights.exponent) / rate;
    }
    return -sum; /* the velocity points down */
}

static float clip_factor(const struct fedmote_head *head, float square) {
    const float factor = real(head->training.clip_norm_micro) / (sqrtf(square > 0.0f ? square : 0.0f) + NORM_FLOOR);
    return factor < 1.0f ? factor : 1.0f;
}

/* ---- the arithmetic -----------------------------------------------------------------------------------------------
 */

/* Where the parameter at `index` of a layer's weights, row by row, stands among its own. */
static uint32_t place_of(uint32_t index, uint32_t inputs, uint32_t outputs) {
    const uint32_t row = index / inputs, column = index % inputs, group = row / ROWS * ROWS;
    const uint32_t rows = outputs - group < ROWS ? outputs - group : ROWS;
    return group * inputs + column * rows + (row - group);
}

/* The float nearest to a whole number of units, ties to even. */
static int32_t whole(float value, int32_t exponent) { return (int32_t)rintf(value * power_of_two(exponent)); }

static int16_t exponent_for(const float *base, uint32_t count, uint32_t limit) {
    float most = SMALLEST;
    for (uint32_t i = 0; i < count; i++) {
        const float size = fabsf(base[i]);
        most = size > most ? size : most;
    }
    int16_t exponent = 24;
    while (exponent > -120 && most * power_of_two(exponent) > (float)limit / HEADROOM) {
        exponent--;
    }
    return exponent;
}

static void begin_layer(struct fedmote_head *head, const struct layer *layer, const float *base) {
    const uint32_t room = UINT32_C(0x7FFFFFFF) / (255U * layer->inputs);
    layer->scaling->weight_limit = room < OFFSET - 1U ? room : OFFSET - 1U;
    const struct numbers weights = weights_of(head, layer), bias = bias_of(head, layer);
    *weights.exponent = exponent_for(base, weights.count, weights.limit);
    *bias.exponent = exponent_for(base + weights.count, bias.count, bias.limit);
    for (uint32_t i = 0; i < weights.count; i++) {
        weights.values[place_of(i, layer->inputs, layer->outputs)] =
            (uint16_t)(whole(base[i], *weights.exponent) + (int32_t)OFFSET);
    }
    for (uint32_t i = 0; i < bias.count; i++) {
        bias.values[i] = (uint16_t)(whole(base[weights.count + i], *bias.exponent) + (int32_t)OFFSET);
    }
    layer->scaling->first_weight_exponent = *weights.exponent;
    layer->scaling->first_bias_exponent = *bias.exponent;
    *weights.bound = fedmote_rows_largest(weights.values, weights.count);
    *bias.bound = fedmote_rows_largest(bias.values, bias.count);
}

static void begin(struct fedmote_head *head, const float *base) {
    const struct fedmote_head_shape *shape = &head->shape;
    head->state.counter = 0;
    head->batch_size = 0;
    struct layer layer = first_layer(head, NULL);
    begin_layer(head, &layer, base);
    if (shape->hidden > 0U) {
        layer.start = (shape->inputs + 1U) * shape->hidden;
        layer.inputs = shape->hidden;
        layer.outputs = shape->outputs;
        layer.scaling = &head->state.scaling[1];
        begin_layer(head, &layer, base + layer.start);
    }
    if (head->velocity != NULL) {
        memset(head->velocity, 0, (size_t)fedmote_head_parameters(shape) * sizeof(int32_t));
    }
}

/* Q16 as a float, by its exponent. */
static float loss_of(int32_t loss) {
    float value = (float)loss;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits -= loss != 0 ? UINT32_C(16) << 23 : 0U;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float sample_loss(struct fedmote_head *head, const int8_t *features, uint32_t label, float *norm) {
    struct layer layers[2];
    const int32_t loss = run(head, features, label, layers);
    if (norm != NULL) {
        *norm = sqrtf(square_of_features(&layers[0])) * sqrtf(square_of_errors(&layers[0]));
    }
    return loss_of(loss);
}

/* The share of one sample in a step. */
static float rate_of(const struct fedmote_head *head) {
    return real(head->training.learning_rate_micro) / (float)head->batch_size;
}

static void batch_begin(struct fedmote_head *head, uint32_t batch_size) {
    if (head->batch_size != batch_size) {
        head->batch_size = batch_size;
        const struct scaled rate = scaled_from(rate_of(head));
        head->state.rate_mantissa = rate.mantissa;
        head->state.rate_shift = rate.shift;
    }
    head->sweep = COLLECT;
    head->is_counting = true;
    if (!is_in_place(head) && is_clipping(head) && batch_size > 1U && head->training.learning_rate_micro > 0U) {
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
    const float loss = loss_of(run(head, features, label, layers));
    if (head->sweep == MEASURE) {
        head->state.product += product_with_velocity(head, layers) / (float)head->batch_size;
        return loss;
    }
    struct scaled factor = {head->state.rate_mantissa, head->state.rate_shift};
    if (head->sweep == CORRECT) {
        factor = scaled_from(rate_of(head) * head->state.correction);
    } else if (is_clipping(head) && head->batch_size == 1U) {
        factor = scaled_from(rate_of(head) * clip_factor(head, square_of_gradient(head, layers)));
    }
    if (is_in_place(head) && head->training.weight_decay_micro > 0U) {
        decay_in_place(head);
    }
    for (uint32_t i = 0; i < fedmote_head_trained_layers(head) && factor.mantissa > 0; i++) {
        if (is_in_place(head)) {
            change_layer(head, &layers[i], factor);
        } else {
            collect_layer(head, &layers[i], factor, head->sweep == CORRECT ? 1 : -1);
        }
    }
    return loss;
}

/* values += velocity, with weight decay; then velocity *= momentum for the mini-batch to come. */
static void apply(struct fedmote_head *head, struct numbers *numbers) {
    const struct scaled decay = decay_factor(head);
    uint32_t random = draw(head);
    for (uint32_t k = 0; k < numbers->count && decay.mantissa > 0; k++) {
        random += 0x9E3779B9U;
        numbers->velocity[k] -=
            decay_of((int32_t)numbers->values[k] - (int32_t)OFFSET, decay, VELOCITY_FRACTION, random);
    }
    uint32_t change = (largest(numbers->velocity, numbers->count) >> VELOCITY_FRACTION) + 1U;
    while (!has_room(numbers, change)) {
        halve(head, numbers, true);
        change = change / 2U + 1U;
    }
    *numbers->bound += change;
    const uint32_t momentum = (uint32_t)(real(head->training.momentum_micro) * 65536.0f);
    for (uint32_t k = 0; k < numbers->count; k++) {
        const int32_t velocity = numbers->velocity[k];
        random += 0x9E3779B9U;
        numbers->values[k] =
            (uint16_t)(numbers->values[k] + (uint32_t)((velocity + (int32_t)(random >> 20)) >> VELOCITY_FRACTION));
        numbers->velocity[k] =
            clamp((velocity >> 16) * (int32_t)momentum + (int32_t)(((uint32_t)velocity & 0xFFFFU) * momentum >> 16),
                  VELOCITY_MAX);
    }
}

static void scale_velocity(const struct numbers *numbers, float factor) {
    const int32_t share = (int32_t)(factor * 32768.0f);
    for (uint32_t k = 0; k < numbers->count; k++) {
        const int32_t velocity = numbers->velocity[k];
        numbers->velocity[k] = (velocity >> 15) * share + ((velocity & 0x7FFF) * share >> 15);
    }
}

static bool batch_end(struct fedmote_head *head) {
    struct numbers numbers[4];
    if (is_in_place(head)) {
        return false;
    }
    if (head->sweep == MEASURE) {
        head->sweep = COLLECT;
        head->is_counting = true;
        return true;
    }
    const uint32_t count = trained_numbers(head, numbers);
    if (head->sweep == COLLECT && is_clipping(head) && head->batch_size > 1U &&
        head->training.learning_rate_micro > 0U) {
        const float before = head->state.velocity_square;
        const float factor = clip_factor(head, square_of_velocity(head) - before - 2.0f * head->state.product);
        if (factor < 1.0f && before > 0.0f) {
            head->state.correction = 1.0f - factor;
            head->sweep = CORRECT;
            head->is_counting = false;
            return true;
        }
        for (uint32_t i = 0; i < count && factor < 1.0f; i++) {
            scale_velocity(&numbers[i], factor);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        apply(head, &numbers[i]);
    }
    return false;
}

/* In the units that the training began with, so that what was not trained has not changed, to the bit. */
static float delta(const struct fedmote_head *head, const float *base, uint32_t index) {
    const struct fedmote_head_shape *shape = &head->shape;
    const uint32_t first = shape->hidden == 0U ? 0U : (shape->inputs + 1U) * shape->hidden;
    const bool is_last = index >= first;
    const uint32_t inputs = is_last && shape->hidden > 0U ? shape->hidden : shape->inputs;
    const uint32_t outputs = is_last ? shape->outputs : shape->hidden;
    const uint32_t start = is_last ? first : 0U, count = inputs * outputs;
    const struct fedmote_head_scaling *scaling = &head->state.scaling[is_last && shape->hidden > 0U ? 1 : 0];
    const bool is_weight = index - start < count;
    const int32_t exponent = is_weight ? scaling->weight_exponent : scaling->bias_exponent;
    const int32_t first_exponent = is_weight ? scaling->first_weight_exponent : scaling->first_bias_exponent;
    const uint32_t place = start + (is_weight ? place_of(index - start, inputs, outputs) : index - start);
    const int32_t value = (int32_t)((const uint16_t *)head->parameters)[place] - (int32_t)OFFSET;
    return (float)value * power_of_two(-exponent) -
           (float)whole(base[index], first_exponent) * power_of_two(-first_exponent);
}

const struct fedmote_arithmetic fedmote_int16 = {
    .parameter_bytes = sizeof(uint16_t),
    .words_per_input = 1U,
    .begin = begin,
    .loss = sample_loss,
    .batch_begin = batch_begin,
    .batch_add = batch_add,
    .batch_end = batch_end,
    .delta = delta,
};
