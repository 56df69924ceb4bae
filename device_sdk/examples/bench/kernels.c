/* SPDX-License-Identifier: Apache-2.0
 *
 * One inference, counted. Words after those of bench_validate(): verification (fedmote_package_open() without a hash:
 * checksum and every bound), start-up (from the verified package to the first operator), inference by each timer, peak
 * of the stack of one inference, bytes of the encoder's arena and of the two structs beside it, number of operators,
 * then each operator alone. Behind the words: s8[feature_count].
 */
#include <stddef.h>

#include "bench.h"
#include "encoder.h"
#include "kernels/kernels.h"
#include "little_endian.h"
#include "samples_region.h"

struct subject {
    const struct bench_board *board;
    struct fedmote_package package;
    struct fedmote_encoder encoder;
    struct samples_region samples;
    uint32_t macs; /* budget of run() */
    int32_t status;
};

static void verify(void *context) {
    static const struct fedmote_operator *const operators[] = {FEDMOTE_ALL_OPERATORS, NULL};
    static const struct fedmote_port port = {.hash = NULL, .operators = operators};
    struct subject *subject = context;
    subject->status =
        fedmote_package_open(&subject->package, &port, subject->board->package, subject->board->package_bytes);
}

/* All that precedes the first operator: binding, and the copy of its record that fedmote_encoder_run() makes. */
static void start(void *context) {
    struct subject *subject = context;
    union fedmote_record record;
    fedmote_encoder_init(&subject->encoder, &subject->package, (int8_t *)subject->board->memory);
    fedmote_record_read(&record, subject->encoder.record, fedmote_load_u32(subject->encoder.record) >> 16);
}

static void run(void *context) {
    struct subject *subject = context;
    subject->status = fedmote_encoder_run(&subject->encoder, subject->macs);
}

static int32_t load_input(struct subject *subject) {
    uint32_t label;
    return samples_region_read(&subject->samples, 0U, fedmote_encoder_input(&subject->encoder),
                               subject->package.input_count, &label);
}

static int32_t count_inferences(struct subject *subject, struct bench_results *results) {
    subject->macs = UINT32_MAX;
    for (uint32_t timer = 0; timer < BENCH_TIMERS; timer++) {
        if (load_input(subject) != 0) {
            return FEDMOTE_ERR_SAMPLE_IO;
        }
        bench_add(results, bench_count(subject->board, timer, run, subject));
    }
    if (load_input(subject) != 0) {
        return FEDMOTE_ERR_SAMPLE_IO;
    }
    subject->board->paint_stack();
    run(subject);
    bench_add(results, subject->board->stack_used());
    return FEDMOTE_OK;
}

/* Each operator as an inference of its own: the encoder stands in front of it, and nothing comes behind it. */
static int32_t count_operators(struct subject *subject, struct bench_results *results) {
    const uint32_t op_count = subject->package.op_count;
    const uint8_t *record = subject->package.ops;
    bench_add(results, op_count);
    if (load_input(subject) != 0) {
        return FEDMOTE_ERR_SAMPLE_IO;
    }
    for (uint32_t i = 0; i < op_count; i++) {
        subject->encoder.record = record;
        subject->encoder.op = i;
        subject->package.op_count = i + 1U;
        bench_add(results, bench_count(subject->board, 0U, run, subject));
        record += 4U * (fedmote_load_u32(record) >> 16);
    }
    return subject->status;
}

int32_t bench_run(const struct bench_board *board, struct bench_results *results, struct bench_tail *tail) {
    static struct subject subject;
    subject.board = board;
    int32_t status = samples_region_open(&subject.samples, board->samples, board->samples_bytes, UINT32_MAX);
    if (status != FEDMOTE_OK) {
        return status;
    }
    bench_add(results, bench_count(board, 0U, verify, &subject));
    if (subject.status != FEDMOTE_OK) {
        return subject.status;
    }
    if (subject.package.encoder_bytes > board->memory_bytes) {
        return FEDMOTE_ERR_ARENA;
    }
    bench_add(results, bench_count(board, 0U, start, &subject));
    status = count_inferences(&subject, results);
    if (status != FEDMOTE_OK) {
        return status;
    }
    bench_add(results, subject.package.encoder_bytes);
    bench_add(results, (uint32_t)(sizeof subject.package + sizeof subject.encoder));
    status = count_operators(&subject, results);
    tail->bytes = (const uint8_t *)fedmote_encoder_features(&subject.encoder);
    tail->size = subject.package.feature_count;
    return status;
}
