/* SPDX-License-Identifier: Apache-2.0
 *
 * From sums to outputs, as src/kernels/requantize.h has it, in seven instructions where shifts go to the right: the
 * product's bit 30, which rounds it, and the last bit that the shift pushes out, which rounds the result, are added
 * without being looked at. Left shifts, which no sensible model has, take a way of their own.
 */
#include "dsp.h"

/* x = x * multiplier / 2^31, rounded. lr multiplier, r12 is lost. */
#define MULTIPLY(x)                                                                                                    \
    "smull r12, " x ", " x ", lr\n"                                                                                    \
    "lsls r12, r12, #1\n"                                                                                              \
    "adc " x ", " x ", " x "\n"                                                                                        \
    "add " x ", " x ", r12, lsr #31\n"

/* x = x / 2^right, rounded. */
#define SHIFT(x, right)                                                                                                \
    "add " x ", " x ", " x ", asr #31\n"                                                                               \
    "asrs " x ", " x ", " right "\n"                                                                                   \
    "adc " x ", " x ", #0\n"

#define STORE(x, out)                                                                                                  \
    "add " x ", " x ", r7\n"                                                                                           \
    "ssat " x ", #8, " x "\n"                                                                                          \
    "strb " x ", [" out "], #1\n"

/* One channel at two positions. r4 the constants, r0 shift. The second position is stored first: it may be the
 * first once more. */
#define CHANNEL(a, b, left, done)                                                                                      \
    "ldr r12, [r4], #4\n"                                                                                              \
    "ldr lr, [r4], #4\n"                                                                                               \
    "ldr r0, [r4], #4\n"                                                                                               \
    "add " a ", " a ", r12\n"                                                                                          \
    "add " b ", " b ", r12\n"                                                                                          \
    "rsbs r0, r0, #0\n"                                                                                                \
    "ble " left "f\n" MULTIPLY(a) SHIFT(a, "r0") MULTIPLY(b) SHIFT(b, "r0") done ":\n" STORE(b, "r3") STORE(a, "r2")

#define CHANNEL_LEFT(a, b, left, done)                                                                                 \
    left ": rsb r0, r0, #0\n"                                                                                          \
         "lsl " a ", " a ", r0\n"                                                                                      \
         "lsl " b ", " b ", r0\n" MULTIPLY(a) MULTIPLY(b) "b " done "b\n"

__attribute__((naked)) void fedmote_dsp_finish_2x2(const int32_t *sums, struct fedmote_dsp_ending *ending, int8_t *out0,
                                                   int8_t *out1) {
    (void)sums, (void)ending, (void)out0, (void)out1;
    __asm volatile("push {r4-r11, lr}\n"
                   "ldm r0, {r8-r11}\n"
                   "ldr r4, [r1]\n"
                   "ldr r7, [r1, #4]\n" CHANNEL("r8", "r9", "1", "2")
                       CHANNEL("r10", "r11", "3", "4") "str r4, [r1]\n"
                                                       "pop {r4-r11, pc}\n" CHANNEL_LEFT("r8", "r9", "1", "2")
                                                           CHANNEL_LEFT("r10", "r11", "3", "4"));
}

__attribute__((naked)) void fedmote_dsp_finish(const int32_t *sums, struct fedmote_dsp_ending *ending, int8_t *out,
                                               uint32_t count) {
    (void)sums, (void)ending, (void)out, (void)count;
    __asm volatile("push {r4-r9, lr}\n"
                   "ldr r4, [r1]\n"
                   "ldr r7, [r1, #4]\n"
                   "1: ldr r8, [r0], #4\n"
                   "ldr r12, [r4], #4\n"
                   "ldr lr, [r4], #4\n"
                   "ldr r9, [r4], #4\n"
                   "add r8, r8, r12\n"
                   "rsbs r9, r9, #0\n"
                   "ble 3f\n" MULTIPLY("r8")
                       SHIFT("r8", "r9") "2:\n" STORE("r8", "r2") "subs r3, r3, #1\n"
                                                                  "bne 1b\n"
                                                                  "str r4, [r1]\n"
                                                                  "pop {r4-r9, pc}\n"
                                                                  "3: rsb r9, r9, #0\n"
                                                                  "lsl r8, r8, r9\n" MULTIPLY("r8") "b 2b\n");
}
