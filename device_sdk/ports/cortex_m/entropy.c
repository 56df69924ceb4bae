/* SPDX-License-Identifier: Apache-2.0 */
#include "entropy.h"

#include "chip.h"

#define START_TICKS 4U

static uint32_t state;
/* Never cleared: noise of the cells after power-on, and after a reset what the boot before it left. */
__attribute__((section(".noinit"))) static uint32_t leftover[32];

static void stir(uint32_t word) {
    uint32_t h = (state ^ word) + 0x9E3779B9U;
    h ^= h >> 16;
    h *= 0x85EBCA6BU;
    h ^= h >> 13;
    h *= 0xC2B2AE35U;
    state = h ^ (h >> 16);
}

/* How far the core counts until the next tick: on an emulator the host decides that, on a part without a generator the
 * drift of crystal and tick leaves a little. */
static uint32_t turns_to_next_tick(void) {
    const uint32_t now = chip_now_ms();
    uint32_t turns = 0;
    while (chip_now_ms() == now) {
        turns++;
    }
    return turns;
}

void entropy_start(uint32_t salt) {
    state = salt;
    for (uint32_t tick = 0; tick < START_TICKS; tick++) {
        stir(turns_to_next_tick());
    }
    for (uint32_t word = 0; word < sizeof leftover / sizeof leftover[0]; word++) {
        stir(leftover[word]);
        leftover[word] = state;
    }
}

uint32_t entropy_word(void) {
    stir(chip_noise());
    stir(chip_now_ms());
    return state;
}
