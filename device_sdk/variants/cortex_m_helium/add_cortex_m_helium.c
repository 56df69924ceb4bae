/* SPDX-License-Identifier: Apache-2.0
 *
 * Sum of two tensors with different scales, four elements at a time.
 */
#include <stddef.h>

#include "helium.h"

/* What the assembly reads: its offsets are there. */
struct terms {
    const int8_t *a, *b;              /* 0, 4 */
    int8_t *out;                      /* 8 */
    uint32_t count;                   /* 12 */
    int32_t offset1, offset2;         /* 16, 20: of the inputs, shifted to the left */
    int32_t shift1, shift2;           /* 24, 28: not above 0 */
    int32_t nudge1, nudge2;           /* 32, 36: 1 where there is a shift */
    int32_t output_shift, zero_point; /* 40, 44: the shift is below 0 */
    int32_t power;                    /* 48 */
    int32_t multiplier1, multiplier2; /* 52, 56 */
    int32_t output_multiplier;        /* 60 */
    int32_t low, high;                /* 64, 68 */
};

typedef char offsets_in_the_assembly[offsetof(struct terms, high) == 68U ? 1 : -1];

#define VECTOR(vector, offset)                                                                                         \
    "ldr r0, [r12, #" offset "]\n"                                                                                     \
    "vdup.32 " vector ", r0\n"
#define NUDGE(vector, one)                                                                                             \
    "vpt.s32 lt, " vector ", zr\n"                                                                                     \
    "vsubt.i32 " vector ", " vector ", " one "\n"

__attribute__((naked)) static void add_terms(const struct terms *terms) {
    (void)terms;
    __asm volatile(
        "push {r4-r11, lr}\n"
        "vpush {d8-d15}\n"
        "mov r12, r0\n" VECTOR("q2", "48") VECTOR("q3", "52") VECTOR("q4", "56") VECTOR("q5", "60") VECTOR("q6", "64")
            VECTOR("q7", "68") "ldm r12, {r0-r11}\n"
                               "dlstp.32 lr, r3\n"
                               "mov r3, r12\n"
                               "ldr r12, [r3, #44]\n"
                               "ldr r3, [r3, #40]\n"
                               "1: vldrb.s32 q0, [r0], #4\n"
                               "vmlas.s32 q0, q2, r4\n"
                               "vqrdmulh.s32 q0, q0, q3\n" NUDGE("q0", "r8") "vrshl.s32 q0, r6\n"
                                                                             "vldrb.s32 q1, [r1], #4\n"
                                                                             "vmlas.s32 q1, q2, r5\n"
                                                                             "vqrdmulh.s32 q1, q1, q4\n" NUDGE(
                                                                                 "q1", "r9") "vrshl.s32 q1, r7\n"
                                                                                             "vadd.i32 q0, q0, q1\n"
                                                                                             "vqrdmulh.s32 q0, q0, q5\n"
                                                                                             "vshr.s32 q1, q0, #31\n"
                                                                                             "vadd.i32 q0, q0, q1\n"
                                                                                             "vrshl.s32 q0, r3\n"
                                                                                             "vadd.i32 q0, q0, r12\n"
                                                                                             "vmax.s32 q0, q0, q6\n"
                                                                                             "vmin.s32 q0, q0, q7\n"
                                                                                             "vstrb.32 q0, [r2], #4\n"
                                                                                             "letp lr, 1b\n"
                                                                                             "vpop {d8-d15}\n"
                                                                                             "pop {r4-r11, pc}\n");
}

static inline int32_t rescale(int8_t q, int32_t zero_point, uint32_t left_shift, int32_t multiplier, int32_t shift) {
    return fedmote_requantize((q - zero_point) * (int32_t)(UINT32_C(1) << left_shift), multiplier, shift);
}

/* Any scale of the output. */
static void add_any(const struct fedmote_sum *op, const int8_t *a, const int8_t *b, int8_t *out, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const int32_t sum = rescale(a[i], op->input1_zero_point, op->left_shift, op->multiplier1, op->shift1) +
                            rescale(b[i], op->input2_zero_point, op->left_shift, op->multiplier2, op->shift2);
        const int32_t scaled = fedmote_requantize(sum, op->output_multiplier, op->output_shift);
        out[i] =
            fedmote_clamp(fedmote_wrapping_add(scaled, op->output_zero_point), op->activation_min, op->activation_max);
    }
}

void fedmote_add(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                 uint32_t end) {
    const struct fedmote_sum *op = &record->sum;
    (void)weights;
    const uint32_t begin = first * FEDMOTE_BLOCK;
    const uint32_t count = (end == op->op.units ? op->count : end * FEDMOTE_BLOCK) - begin;
    const int32_t power = (int32_t)(UINT32_C(1) << op->left_shift);
    const struct terms terms = {memory + op->op.input_offset + begin,
                                memory + op->input2_offset + begin,
                                memory + op->op.output_offset + begin,
                                count,
                                -op->input1_zero_point * power,
                                -op->input2_zero_point * power,
                                op->shift1,
                                op->shift2,
                                op->shift1 < 0,
                                op->shift2 < 0,
                                op->output_shift,
                                op->output_zero_point,
                                power,
                                op->multiplier1,
                                op->multiplier2,
                                op->output_multiplier,
                                op->activation_min,
                                op->activation_max};
    if (op->output_shift < 0) {
        add_terms(&terms);
    } else {
        add_any(op, terms.a, terms.b, terms.out, count);
    }
}
