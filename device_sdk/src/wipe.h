/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FEDMOTE_WIPE_H
#define FEDMOTE_WIPE_H

#include <stdint.h>

/* Zeros where keys were. Nobody reads these bytes again, so the compiler might leave an ordinary store out. */
static inline void fedmote_wipe(uint8_t *bytes, uint32_t size) {
    volatile uint8_t *wiped = bytes;
    for (uint32_t i = 0; i < size; i++) {
        wiped[i] = 0;
    }
}

#endif
