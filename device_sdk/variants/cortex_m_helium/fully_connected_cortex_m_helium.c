/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer: four rows of weights share the inputs that are loaded. The weights keep their plain order.
 */
#include "helium.h"

/* sums[j] = sum of x[i] * w[j][i], for four rows of n. */
static void dot_4(int32_t *sums, const int8_t *x, const int8_t *const w[4], uint32_t n) {
    register int32_t s0 __asm("r0") = 0;
    register int32_t s1 __asm("r2") = 0;
    register int32_t s2 __asm("r4") = 0;
    register int32_t s3 __asm("r6") = 0;
    const int8_t *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    __asm volatile("dlstp.8 lr, %9\n"
                   "1: vldrb.u8 q0, [%4], #16\n"
                   "vldrb.u8 q1, [%5], #16\n"
                   "vmladava.s8 %0, q0, q1\n"
                   "vldrb.u8 q2, [%6], #16\n"
                   "vmladava.s8 %1, q0, q2\n"
                   "vldrb.u8 q1, [%7], #16\n"
                   "vmladava.s8 %2, q0, q1\n"
                   "vldrb.u8 q2, [%8], #16\n"
                   "vmladava.s8 %3, q0, q2\n"
                   "letp lr, 1b\n"
                   : "+r"(s0), "+r"(s1), "+r"(s2), "+r"(s3), "+r"(x), "+r"(w0), "+r"(w1), "+r"(w2), "+r"(w3)
                   : "r"(n)
                   : "lr", "q0", "q1", "q2", "memory");
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

void fedmote_fully_connected(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_dense *op = &record->dense;
    const int8_t *input = memory + op->op.input_offset;
    const int8_t *w = (const int8_t *)(weights + op->channels.weights) + first * op->in_n;
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    int8_t *output = memory + op->op.output_offset;
    for (uint32_t c = first; c < end; c += 4U, w += 4U * op->in_n) {
        const uint32_t count = end - c < 4U ? end - c : 4U;
        const int8_t *const rows[4] = {w, count > 1U ? w + op->in_n : w, count > 2U ? w + 2U * op->in_n : w,
                                       count > 3U ? w + 3U * op->in_n : w};
        int32_t sums[4];
        dot_4(sums, input, rows, op->in_n);
        fedmote_scale(output + c, &scaling, c, sums, count);
    }
}
