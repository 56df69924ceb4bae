/* SPDX-License-Identifier: Apache-2.0
 *
 * SGD steps of the head, counted: for every number of inputs and every batch size of the tables below five words:
 * inputs, outputs, batch size, instructions of the whole step, bytes of RAM beyond the parameters. Behind the words:
 * the parameters f32[] that the last step left.
 */
#include "head.h"
#include "bench.h"

#define OUTPUTS 10U

struct step {
    struct fedmote_head head;
    const int8_t *features; /* s8[batch][inputs] */
    uint32_t batch;
};

/* A single sample without momentum needs no velocity. */
static void train(void *context) {
    struct step *step = context;
    if (step->batch == 1U) {
        (void)fedmote_head_step(&step->head, step->features, 0U, 0.05f);
        return;
    }
    fedmote_head_batch_begin(&step->head, 0.0f);
    for (uint32_t i = 0; i < step->batch; i++) {
        (void)fedmote_head_batch_add(&step->head, step->features + i * step->head.inputs, i % OUTPUTS, step->batch);
    }
    fedmote_head_batch_end(&step->head, 0.05f);
}

/* Numbers without a pattern that a kernel could profit from: the top bytes of a linear congruential generator. */
static int8_t draw(uint32_t *state) {
    *state = *state * 1664525U + 1013904223U;
    return (int8_t)((int32_t)(*state >> 24) - 128);
}

int32_t bench_run(const struct bench_board *board, struct bench_results *results, struct bench_tail *tail) {
    static const uint32_t inputs[] = {64U, 128U, 256U}, batches[] = {1U, 8U};
    for (uint32_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        for (uint32_t j = 0; j < sizeof batches / sizeof batches[0]; j++) {
            const uint32_t parameters = OUTPUTS * inputs[i] + OUTPUTS;
            float *values = (float *)(void *)board->memory;
            int8_t *features = (int8_t *)(values + 2U * parameters + inputs[i] + OUTPUTS);
            struct step step = {{values, values + parameters, values + 2U * parameters, inputs[i], OUTPUTS, 0.05f, -3},
                                features,
                                batches[j]};
            uint32_t state = 12345U;
            for (uint32_t k = 0; k < parameters; k++) {
                values[k] = (float)draw(&state) / 1024.0f;
                values[parameters + k] = 0.0f;
            }
            for (uint32_t k = 0; k < batches[j] * inputs[i]; k++) {
                features[k] = draw(&state);
            }
            bench_add(results, inputs[i]);
            bench_add(results, OUTPUTS);
            bench_add(results, batches[j]);
            bench_add(results, bench_count(board, 0U, train, &step));
            bench_add(results, 4U * ((batches[j] == 1U ? 0U : parameters) + inputs[i] + OUTPUTS));
            tail->bytes = (const uint8_t *)values;
            tail->size = 4U * parameters;
        }
    }
    return 0;
}
