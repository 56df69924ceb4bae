/* SPDX-License-Identifier: Apache-2.0
 *
 * The 44 interrupts of the part, behind the vectors of the core; number 5 is UART0.
 */
#include "startup.h"

void uart0_handler(void); /* uart.c */

#define UNUSED_4 unexpected_handler, unexpected_handler, unexpected_handler, unexpected_handler
#define UNUSED_12 UNUSED_4, UNUSED_4, UNUSED_4

extern const board_handler image_interrupts[44];
__attribute__((section(".vectors.interrupts"), used)) const board_handler image_interrupts[44] = {
    UNUSED_4,      unexpected_handler,                                                    /* 0 to 4 */
    uart0_handler,                                                                        /* 5 */
    UNUSED_12,     UNUSED_12,          UNUSED_12, unexpected_handler, unexpected_handler, /* 6 to 43 */
};
