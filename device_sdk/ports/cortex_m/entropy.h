/* SPDX-License-Identifier: Apache-2.0
 *
 * Entropy for the boot nonce and for jitter: chip_noise(), always stirred with the board's salt, with what the RAM held
 * at start and with the time. Not for keys.
 */
#ifndef FEDMOTE_CORTEX_M_ENTROPY_H
#define FEDMOTE_CORTEX_M_ENTROPY_H

#include <stdint.h>

/* After chip_start(), before entropy_word(). `salt` tells boards apart that start at the same instant. */
void entropy_start(uint32_t salt);
uint32_t entropy_word(void);

#endif
