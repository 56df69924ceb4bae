/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of convolutions and fully connected layers, in assembly: they take all 14 registers that there are,
 * and a compiler neither folds the rotation into the widening nor gets along without spilling. Two groups per turn; an
 * odd number of them is entered in the middle.
 */
#include "dsp.h"

/* r1 columns, r2 and r3 the two rows, r4 to r7 a group of both columns, r8 to r11 sums, r12 end of the columns, r0 and
 * lr a group of weights. 16 products in 15 instructions. */
#define GROUP_2X2                                                                                                      \
    "ldmia r1!, {r4, r5, r6, r7}\n"                                                                                    \
    "ldr lr, [r2], #4\n"                                                                                               \
    "sxtb16 r0, lr\n"                                                                                                  \
    "sxtb16 lr, lr, ror #8\n"                                                                                          \
    "smlad r8, r0, r4, r8\n"                                                                                           \
    "smlad r9, r0, r6, r9\n"                                                                                           \
    "smlad r8, lr, r5, r8\n"                                                                                           \
    "smlad r9, lr, r7, r9\n"                                                                                           \
    "ldr lr, [r3], #4\n"                                                                                               \
    "sxtb16 r0, lr\n"                                                                                                  \
    "sxtb16 lr, lr, ror #8\n"                                                                                          \
    "smlad r10, r0, r4, r10\n"                                                                                         \
    "smlad r11, r0, r6, r11\n"                                                                                         \
    "smlad r10, lr, r5, r10\n"                                                                                         \
    "smlad r11, lr, r7, r11\n"

__attribute__((naked)) void fedmote_dsp_dot_2x2(int32_t *sums, const uint32_t *columns, const int8_t *w,
                                                uint32_t stride, uint32_t groups) {
    (void)sums, (void)columns, (void)w, (void)stride, (void)groups;
    __asm volatile("push {r0, r4-r11, lr}\n"
                   "ldr r12, [sp, #40]\n" /* groups */
                   "add r3, r3, r2\n"
                   "ldm r0, {r8-r11}\n"
                   "tst r12, #1\n"
                   "add r12, r1, r12, lsl #4\n"
                   "bne 2f\n"
                   "1:\n" GROUP_2X2 "2:\n" GROUP_2X2 "cmp r1, r12\n"
                   "bne 1b\n"
                   "pop {r0}\n"
                   "stm r0, {r8-r11}\n"
                   "pop {r4-r11, pc}\n");
}

/* One row's part of a group: the column's group is in r5 and r6. */
#define ROW_4X1(row, sum)                                                                                              \
    "ldr lr, [" row "], #4\n"                                                                                          \
    "sxtb16 r0, lr\n"                                                                                                  \
    "sxtb16 lr, lr, ror #8\n"                                                                                          \
    "smlad " sum ", r0, r5, " sum "\n"                                                                                 \
    "smlad " sum ", lr, r6, " sum "\n"

/* r1 column, r2, r3, r4, r7 rows, r8 to r11 sums, r12 end of the column. 16 products in 21 instructions. */
#define GROUP_4X1                                                                                                      \
    "ldmia r1!, {r5, r6}\n" ROW_4X1("r2", "r8") ROW_4X1("r3", "r9") ROW_4X1("r4", "r10") ROW_4X1("r7", "r11")

__attribute__((naked)) void fedmote_dsp_dot_4x1(int32_t *sums, const uint32_t *column, const int8_t *w, uint32_t stride,
                                                uint32_t groups) {
    (void)sums, (void)column, (void)w, (void)stride, (void)groups;
    __asm volatile("push {r0, r4-r11, lr}\n"
                   "ldr r12, [sp, #40]\n" /* groups */
                   "ldm r0, {r8-r11}\n"
                   "mov r0, r3\n"
                   "add r3, r2, r0\n"
                   "add r4, r3, r0\n"
                   "add r7, r4, r0\n"
                   "tst r12, #1\n"
                   "add r12, r1, r12, lsl #3\n"
                   "bne 2f\n"
                   "1:\n" GROUP_4X1 "2:\n" GROUP_4X1 "cmp r1, r12\n"
                   "bne 1b\n"
                   "pop {r0}\n"
                   "stm r0, {r8-r11}\n"
                   "pop {r4-r11, pc}\n");
}

/* r8 to r11 sums, r1 and r2 the tap's bytes, r4 and r5 steps, r0 taps left, r6, r7, r12, lr the tap. On the
 * stack: taps, both gaps, rows left. Four products in 14 instructions. */
__attribute__((naked)) void fedmote_dsp_depthwise_4(int32_t *sums, const int8_t *x, const int8_t *w,
                                                    const struct fedmote_dsp_taps *taps) {
    (void)sums, (void)x, (void)w, (void)taps;
    __asm volatile("push {r0, r4-r11, lr}\n"
                   "add r12, r3, #16\n"
                   "ldm r12, {r4-r9}\n"
                   "push {r6-r9}\n"
                   "ldm r3, {r8-r11}\n"
                   "1: ldr r0, [sp]\n"
                   "2: ldr r6, [r1]\n"
                   "ldr r7, [r2]\n"
                   "add r1, r1, r4\n"
                   "add r2, r2, r5\n"
                   "sxtb16 r12, r6\n"
                   "sxtb16 lr, r7\n"
                   "sxtb16 r6, r6, ror #8\n"
                   "sxtb16 r7, r7, ror #8\n"
                   "smlabb r8, r12, lr, r8\n"
                   "smlatt r10, r12, lr, r10\n"
                   "smlabb r9, r6, r7, r9\n"
                   "smlatt r11, r6, r7, r11\n"
                   "subs r0, r0, #1\n"
                   "bne 2b\n"
                   "ldr r6, [sp, #4]\n"
                   "ldr r7, [sp, #8]\n"
                   "ldr r0, [sp, #12]\n"
                   "add r1, r1, r6\n"
                   "add r2, r2, r7\n"
                   "subs r0, r0, #1\n"
                   "str r0, [sp, #12]\n"
                   "bne 1b\n"
                   "add sp, sp, #16\n"
                   "pop {r0}\n"
                   "stm r0, {r8-r11}\n"
                   "pop {r4-r11, pc}\n");
}
