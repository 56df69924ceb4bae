/* SPDX-License-Identifier: Apache-2.0
 *
 * Entropy for the boot nonce and for jitter: the part's generator where it runs, always stirred with the board's
 * salt, with what the RAM held at start and with the fine value of the tick. Not for keys.
 */
#include "registers.h"
#include "stm32f4.h"

#define START_TICKS 4U
#define RNG_TURNS 1000U /* a word takes 40 periods of 48 MHz */

static uint32_t state;
/* Never cleared: noise of the cells after power-on, and after a reset what the boot before it left. */
__attribute__((section(".noinit"))) static uint32_t leftover[32];

static uint32_t stir(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85EBCA6BU;
    h ^= h >> 13;
    h *= 0xC2B2AE35U;
    return h ^ (h >> 16);
}

static uint32_t generator_word(void) {
    for (uint32_t turn = 0; turn < RNG_TURNS; turn++) {
        const uint32_t flags = RNG_SR;
        if ((flags & RNG_SR_ERRORS) != 0U) {
            return 0U; /* no 48 MHz clock, or a seed error */
        }
        if ((flags & RNG_SR_READY) != 0U) {
            return RNG_DR;
        }
    }
    return 0U;
}

/* How far the core counts until the next tick: on an emulator the host decides that, on a part without a generator the
 * drift of crystal and tick leaves a little. */
static uint32_t turns_to_next_tick(void) {
    const uint32_t now = stm32_now_ms();
    uint32_t turns = 0;
    while (stm32_now_ms() == now) {
        turns++;
    }
    return turns;
}

void stm32_entropy_start(uint32_t salt) {
    state = salt;
    RCC_AHB2ENR |= RCC_AHB2ENR_RNG;
    RNG_CR |= RNG_CR_ENABLE;
    for (uint32_t tick = 0; tick < START_TICKS; tick++) {
        state = stir((state ^ turns_to_next_tick()) + 0x9E3779B9U);
    }
    for (uint32_t word = 0; word < sizeof leftover / sizeof leftover[0]; word++) {
        state = stir((state ^ leftover[word]) + 0x9E3779B9U);
        leftover[word] = state;
    }
}

uint32_t stm32_random(void) {
    state = stir((state ^ generator_word()) + 0x9E3779B9U);
    state = stir((state ^ SYSTICK_VALUE) + 0x9E3779B9U);
    state = stir((state ^ stm32_now_ms()) + 0x9E3779B9U);
    return state;
}
