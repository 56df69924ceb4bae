/* SPDX-License-Identifier: Apache-2.0
 *
 * The 82 interrupts of the part, behind the vectors of the core; number 37 is USART1, number 81 the FPU.
 */
#include "startup.h"

void usart1_handler(void); /* uart.c */

#define UNUSED_4 unexpected_handler, unexpected_handler, unexpected_handler, unexpected_handler
#define UNUSED_16 UNUSED_4, UNUSED_4, UNUSED_4, UNUSED_4

extern const board_handler image_interrupts[82];
__attribute__((section(".vectors.interrupts"), used)) const board_handler image_interrupts[82] = {
    UNUSED_16,          UNUSED_16,          UNUSED_4,           unexpected_handler, /* 0 to 36 */
    usart1_handler,                                                                 /* 37 */
    UNUSED_16,          UNUSED_16,          UNUSED_4,           UNUSED_4,
    unexpected_handler, unexpected_handler, unexpected_handler, /* 38 to 80 */
    unexpected_handler,                                         /* 81: FPU */
};
