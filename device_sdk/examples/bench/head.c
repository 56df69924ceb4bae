/* SPDX-License-Identifier: Apache-2.0
 *
 * SGD steps of the head, counted, in the board's own arithmetic. The words of a row: bytes of a parameter, inputs,
 * hidden units, outputs, batch, momentum, weight decay and clipping norm in millionths, mini-batches, instructions of
 * all of them, bytes of velocity, bytes of scratch memory, bytes of stack, parameters whose change is finite. A row
 * that the board's memory does not hold has no mini-batches and no figures.
 */
#include "head.h"

#include <stddef.h>

#include "bench.h"
#include "fedmote_board.h"

#define STEPS 32U
#define LEARNING_RATE_MICRO 50000U

struct row {
    uint16_t inputs, hidden, outputs, batch;
    uint32_t momentum_micro, weight_decay_micro, clip_norm_micro;
};

static const struct row rows[] = {
    {64, 0, 10, 1, 0, 0, 0},    {128, 0, 10, 1, 0, 0, 0},      {256, 0, 10, 1, 0, 0, 0},
    {256, 0, 2, 1, 0, 0, 0},    {64, 0, 10, 8, 0, 0, 0},       {64, 0, 10, 1, 900000, 0, 0},
    {64, 0, 10, 1, 0, 1000, 0}, {64, 0, 10, 1, 0, 0, 1000000}, {64, 0, 10, 8, 900000, 1000, 1000000},
    {64, 16, 10, 1, 0, 0, 0},   {64, 16, 10, 8, 900000, 0, 0},
};

struct steps {
    struct fedmote_head head;
    const int8_t *features; /* s8[STEPS][inputs] */
    uint32_t batch, count;
};

static void train(void *context) {
    struct steps *steps = context;
    const struct fedmote_arithmetic *arithmetic = steps->head.arithmetic;
    for (uint32_t first = 0; first < steps->count * steps->batch; first += steps->batch) {
        arithmetic->batch_begin(&steps->head, steps->batch);
        do {
            for (uint32_t i = first; i < first + steps->batch; i++) {
                const int8_t *features = steps->features + i % STEPS * steps->head.shape.inputs;
                (void)arithmetic->batch_add(&steps->head, features, i % steps->head.shape.outputs);
            }
        } while (arithmetic->batch_end(&steps->head));
    }
}

/* Numbers without a pattern that a kernel could profit from: the top bytes of a linear congruential generator. */
static int8_t draw(uint32_t *state) {
    *state = *state * 1664525U + 1013904223U;
    return (int8_t)((int32_t)(*state >> 24) - 128);
}

/* The memory of a board: parameters as they come f32, in the board's arithmetic, velocity where one is needed, scratch,
 * features. Returns the bytes of all that. */
static uint32_t lay_out(struct steps *steps, const struct row *row, uint8_t *memory) {
    struct fedmote_head *head = &steps->head;
    *head = (struct fedmote_head){
        .arithmetic = &FEDMOTE_BOARD_ARITHMETIC,
        .shape = {row->inputs, row->hidden, row->outputs, true, 0.01f, -3},
        .training = {.learning_rate_micro = LEARNING_RATE_MICRO,
                     .momentum_micro = row->momentum_micro,
                     .weight_decay_micro = row->weight_decay_micro,
                     .clip_norm_micro = row->clip_norm_micro,
                     .trained_layers = 2U},
    };
    const uint32_t parameters = (uint32_t)fedmote_head_parameters(&head->shape);
    uint8_t *at = memory + 4U * parameters;
    head->parameters = at;
    at += (head->arithmetic->parameter_bytes * parameters + 3U) & ~3U;
    if (fedmote_head_needs_velocity(&head->training, row->batch)) {
        head->velocity = at;
        at += 4U * parameters;
    }
    head->scratch = (float *)(void *)at;
    at += fedmote_head_scratch_bytes(&head->shape, head->arithmetic);
    steps->features = (const int8_t *)at;
    steps->batch = row->batch;
    steps->count = STEPS / row->batch;
    return (uint32_t)(at - memory) + STEPS * row->inputs;
}

static void prepare(struct steps *steps, const struct row *row, uint8_t *memory) {
    (void)lay_out(steps, row, memory);
    float *base = (float *)(void *)memory;
    int8_t *features = (int8_t *)(memory + (steps->features - (const int8_t *)memory));
    const uint32_t parameters = (uint32_t)fedmote_head_parameters(&steps->head.shape);
    uint32_t state = 12345U;
    for (uint32_t i = 0; i < parameters; i++) {
        base[i] = (float)draw(&state) / 1024.0f;
    }
    for (uint32_t i = 0; i < STEPS * row->inputs; i++) {
        features[i] = draw(&state);
    }
    steps->head.arithmetic->begin(&steps->head, base);
}

/* How many parameters changed by a finite number. */
static uint32_t count_finite(const struct fedmote_head *head, const float *base) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < (uint32_t)fedmote_head_parameters(&head->shape); i++) {
        const float delta = head->arithmetic->delta(head, base, i);
        count += delta - delta == 0.0f ? 1U : 0U;
    }
    return count;
}

/* What was measured of the row. */
struct figures {
    uint32_t steps, instructions, velocity_bytes, scratch_bytes, stack_bytes, finite;
};

static struct figures measure(const struct bench_board *board, const struct row *row) {
    static struct steps steps;
    const struct fedmote_head *head = &steps.head;
    struct figures figures = {0};
    if (lay_out(&steps, row, board->memory) > board->memory_bytes) {
        return figures;
    }
    figures.steps = steps.count;
    prepare(&steps, row, board->memory);
    figures.instructions = bench_count(board, 0U, train, &steps);
    prepare(&steps, row, board->memory);
    board->paint_stack();
    train(&steps);
    figures.stack_bytes = board->stack_used();
    figures.velocity_bytes = head->velocity == NULL ? 0U : 4U * (uint32_t)fedmote_head_parameters(&head->shape);
    figures.scratch_bytes = (uint32_t)fedmote_head_scratch_bytes(&head->shape, head->arithmetic);
    figures.finite = count_finite(head, (const float *)(const void *)board->memory);
    return figures;
}

int32_t bench_run(const struct bench_board *board, struct bench_results *results, struct bench_tail *tail) {
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *row = &rows[i];
        const struct figures figures = measure(board, row);
        const uint32_t words[] = {
            FEDMOTE_BOARD_ARITHMETIC.parameter_bytes,
            row->inputs,
            row->hidden,
            row->outputs,
            row->batch,
            row->momentum_micro,
            row->weight_decay_micro,
            row->clip_norm_micro,
            figures.steps,
            figures.instructions,
            figures.velocity_bytes,
            figures.scratch_bytes,
            figures.stack_bytes,
            figures.finite,
        };
        for (uint32_t j = 0; j < sizeof words / sizeof words[0]; j++) {
            bench_add(results, words[j]);
        }
    }
    (void)tail; /* the words are all */
    return 0;
}
