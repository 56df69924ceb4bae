/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring on an emulated board, whose counters an instruction-driven clock drives. Measures before anything that
 * interrupts is started, then sends words and tail over the serial line. On a part the numbers mean nothing.
 */
#include "bench.h"
#include "chip.h"
#include "fedmote_board.h"
#include "results.h"

#if BENCH_TIMERS != CHIP_COUNTERS
#error "the bench reads as many timers as chips lend counters"
#endif

#define STACK_MARK 0xA5A5A5A5U

extern uint32_t image_stack_bottom[];

static const uint32_t *painted_end;

/* All but the return, which the empty function has as well. */
__attribute__((naked)) static void loop(void *context) {
    (void)context;
    __asm volatile("1: subs r0, #1\n"
                   "bne 1b\n"
                   "bx lr\n");
}

/* Marks all from `bottom` to the stack pointer, which it returns. Nothing below that of a function that stores nothing
 * itself is in use: interrupts are off. */
__attribute__((naked)) static uint32_t *paint(uint32_t *bottom, uint32_t mark) {
    (void)bottom;
    (void)mark;
    __asm volatile("mov r2, sp\n"
                   "b 2f\n"
                   "1: stmia r0!, {r1}\n"
                   "2: cmp r0, r2\n"
                   "blo 1b\n"
                   "bx lr\n");
}

static void paint_stack(void) { painted_end = paint(image_stack_bottom, STACK_MARK); }

static uint32_t stack_used(void) {
    const uint32_t *word = image_stack_bottom;
    while (word < painted_end && *word == STACK_MARK) {
        word++;
    }
    return (uint32_t)((uintptr_t)painted_end - (uintptr_t)word);
}

int main(void) {
    static uint8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    static struct bench_results words;
    static const struct bench_board board = {
        .now = chip_counter,
        .loop = loop,
        .paint_stack = paint_stack,
        .stack_used = stack_used,
        .package = (const uint8_t *)FEDMOTE_BOARD_REGIONS_PACKAGE_ADDRESS,
        .package_bytes = FEDMOTE_BOARD_REGIONS_PACKAGE_BYTES,
        .samples = (const uint8_t *)FEDMOTE_BOARD_REGIONS_SAMPLES_ADDRESS,
        .samples_bytes = FEDMOTE_BOARD_REGIONS_SAMPLES_BYTES,
        .memory = memory,
        .memory_bytes = sizeof memory,
    };
    struct bench_tail tail = {0, 0};

    chip_counters_start();
    bench_validate(&board, &words);
    int32_t status = bench_run(&board, &words, &tail);
    chip_start();
    struct results *results = results_open();
    if (status == FEDMOTE_OK && words.count > BENCH_WORDS) {
        status = FEDMOTE_ERR_ARENA;
    }
    if (status == FEDMOTE_OK) {
        status = results_emit(results, (const uint8_t *)words.words, 4U * words.count);
    }
    if (status == FEDMOTE_OK) {
        status = results_emit(results, tail.bytes, tail.size);
    }
    if (status != FEDMOTE_OK) {
        results_refuse(results, status);
    }
    for (;;) {
        chip_sleep();
    }
}
