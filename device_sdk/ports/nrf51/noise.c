/* SPDX-License-Identifier: Apache-2.0
 * The part's random number generator, which makes a byte in 0.7 ms at most.
 */
#include "chip.h"
#include "registers.h"

#define READY_TURNS 10000U

uint32_t chip_noise(void) {
    uint32_t word = 0;
    RNG_TASK_START = 1U;
    for (uint32_t byte = 0; byte < sizeof word; byte++) {
        RNG_EVENT_READY = 0U;
        for (uint32_t turn = 0; turn < READY_TURNS && RNG_EVENT_READY == 0U; turn++) {
        }
        word = word << 8 | (RNG_VALUE & 0xFFU);
    }
    RNG_TASK_STOP = 1U; /* it takes current */
    return word;
}
