/* SPDX-License-Identifier: Apache-2.0
 *
 * The 26 interrupts of the part, behind the vectors of the core; number 2 is UART0, number 9 TIMER1.
 */
#include "startup.h"

void uart0_handler(void); /* device_line.c */
void timer1_handler(void);

#define UNUSED_2 unexpected_handler, unexpected_handler
#define UNUSED_6 UNUSED_2, UNUSED_2, UNUSED_2

extern const board_handler image_interrupts[26];
__attribute__((section(".vectors.interrupts"), used)) const board_handler image_interrupts[26] = {
    UNUSED_2,                                     /* 0 and 1 */
    uart0_handler,                                /* 2 */
    UNUSED_6,                                     /* 3 to 8 */
    timer1_handler,                               /* 9 */
    UNUSED_6,       UNUSED_6, UNUSED_2, UNUSED_2, /* 10 to 25 */
};
