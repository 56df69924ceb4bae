/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring on an emulated STM32F405: an emulator with an instruction-driven clock of 1 ns runs TIM2 and TIM5 at 1 GHz,
 * so that they tick exactly once per instruction. Measures before anything that interrupts is started, then sends words
 * and tail over the serial line. On the part the numbers mean nothing.
 */
#include "bench.h"
#include "fedmote_board.h"
#include "registers.h"
#include "results.h"
#include "stm32f4.h"

#define TIMER(number, offset) STM32_REGISTER(timer_bases[number] + (offset))
#define TIMER_CONTROL 0x00U
#define TIMER_EVENT 0x14U
#define TIMER_COUNTER 0x24U
#define TIMER_PRESCALER 0x28U
#define TIMER_RELOAD 0x2CU
#define STACK_MARK 0xA5A5A5A5U

extern uint32_t image_stack_bottom[];

static const uint32_t timer_bases[BENCH_TIMERS] = {0x40000000U, 0x40000C00U}; /* TIM2, TIM5: the two with 32 bits */
static volatile uint32_t *painted_end;

static void start_timers(void) {
    RCC_APB1ENR |= RCC_APB1ENR_TIM2 | RCC_APB1ENR_TIM5;
    for (uint32_t timer = 0; timer < BENCH_TIMERS; timer++) {
        TIMER(timer, TIMER_PRESCALER) = 0U;
        TIMER(timer, TIMER_RELOAD) = UINT32_MAX;
        TIMER(timer, TIMER_EVENT) = 1U;
        TIMER(timer, TIMER_CONTROL) = 1U;
    }
}

static uint32_t now(uint32_t timer) { return TIMER(timer, TIMER_COUNTER); }

/* All but the return, which the empty function has as well. */
__attribute__((naked)) static void loop(void *context) {
    (void)context;
    __asm volatile("1: subs r0, #1\n"
                   "bne 1b\n"
                   "bx lr\n");
}

/* Nothing below the stack pointer of a function that calls none is in use: interrupts are off. */
__attribute__((noinline)) static void paint_stack(void) {
    __asm volatile("mov %0, sp" : "=r"(painted_end));
    for (volatile uint32_t *word = image_stack_bottom; word < painted_end; word++) {
        *word = STACK_MARK;
    }
}

static uint32_t stack_used(void) {
    const volatile uint32_t *word = image_stack_bottom;
    while (word < painted_end && *word == STACK_MARK) {
        word++;
    }
    return (uint32_t)((uintptr_t)painted_end - (uintptr_t)word);
}

int main(void) {
    static uint8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    static struct bench_results words;
    static const struct bench_board board = {
        .now = now,
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

    start_timers();
    bench_validate(&board, &words);
    int32_t status = bench_run(&board, &words, &tail);
    stm32_start();
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
        stm32_sleep();
    }
}
