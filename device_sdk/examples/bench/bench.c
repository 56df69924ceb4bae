/* SPDX-License-Identifier: Apache-2.0 */
#include "bench.h"

void bench_add(struct bench_results *results, uint32_t word) {
    if (results->count < BENCH_WORDS) {
        results->words[results->count] = word;
    }
    results->count++;
}

static void nothing(void *context) { (void)context; }

__attribute__((noinline)) static uint32_t ticks(const struct bench_board *board, uint32_t timer, bench_work work,
                                                void *context) {
    const uint32_t before = board->now(timer);
    work(context);
    return board->now(timer) - before;
}

uint32_t bench_count(const struct bench_board *board, uint32_t timer, bench_work work, void *context) {
    return ticks(board, timer, work, context) - ticks(board, timer, nothing, context);
}

void bench_validate(const struct bench_board *board, struct bench_results *results) {
    static const uint32_t lengths[] = {1U, 1001U, 100001U};
    for (uint32_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (uint32_t timer = 0; timer < BENCH_TIMERS; timer++) {
            bench_add(results, bench_count(board, timer, board->loop, (void *)(uintptr_t)lengths[i]));
        }
    }
}
