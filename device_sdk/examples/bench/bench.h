/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts instructions: programs behind `fedmote bench`, for an emulated board whose timers executed instructions drive.
 * All counts are ticks; the host knows how many an instruction takes.
 * What is measured is reached through function pointers, so that the compiler can move no work across a reading.
 */
#ifndef FEDMOTE_BENCH_H
#define FEDMOTE_BENCH_H

#include <stdint.h>

#define BENCH_TIMERS 2U
#define BENCH_WORDS 192U

typedef void (*bench_work)(void *context);

/* What a board lends. Interrupts are off. */
struct bench_board {
    uint32_t (*now)(uint32_t timer); /* ticks since some moment, modulo 2^32; timer < BENCH_TIMERS */
    bench_work loop;                 /* two instructions for each count of its context, which is a number above 0 */
    void (*paint_stack)(void);       /* marks all that is not in use */
    uint32_t (*stack_used)(void);    /* bytes of it that lost their mark since */
    const uint8_t *package;          /* the package and its samples, for the programs that take one */
    uint32_t package_bytes;
    const uint8_t *samples;
    uint32_t samples_bytes;
    uint8_t *memory; /* 16-aligned */
    uint32_t memory_bytes;
};

/* The results: words, little endian as the boards are. Those of bench_validate() come first. */
struct bench_results {
    uint32_t words[BENCH_WORDS];
    uint32_t count; /* of words; those beyond BENCH_WORDS are counted but lost */
};

void bench_add(struct bench_results *results, uint32_t word);

/* Ticks of `work`, without the call and without its return. */
uint32_t bench_count(const struct bench_board *board, uint32_t timer, bench_work work, void *context);

/* Counts loops of known length: for n = 1, 1001, 100001 one word per timer, the ticks of 2 * n instructions. */
void bench_validate(const struct bench_board *board, struct bench_results *results);

/* The programs. 0, or a status of the SDK; `tail` is what follows the words, borrowed from the board's memory. */
struct bench_tail {
    const uint8_t *bytes;
    uint32_t size;
};
int32_t bench_run(const struct bench_board *board, struct bench_results *results, struct bench_tail *tail);

#endif
