/* SPDX-License-Identifier: Apache-2.0
 *
 * Fully connected layer: the input becomes a column of widened values, over which four outputs run at a time. Weights:
 * [fours of outputs][groups of four inputs][4 outputs][4 inputs]; what is missing to whole fours is zero.
 */
#include "dsp.h"

#define OUTPUTS 4U
#define GROUP_BYTES 16U                        /* of the weights of four outputs */
#define COLUMN_GROUPS (FEDMOTE_DSP_WORDS / 2U) /* widened at once */

/* Adds one output's part of a group. r2, r3 the column's group, r8 widened weights. */
#define ROW(w, sum)                                                                                                    \
    "sxtb16 r8, " w "\n"                                                                                               \
    "sxtb16 " w ", " w ", ror #8\n"                                                                                    \
    "smlad " sum ", r8, r2, " sum "\n"                                                                                 \
    "smlad " sum ", " w ", r3, " sum "\n"
/* r0 column, r1 weights, r4 to r7 the weights of a group. 16 products in 18 instructions. */
#define GROUP                                                                                                          \
    "ldmia r0!, {r2, r3}\n"                                                                                            \
    "ldmia r1!, {r4-r7}\n" ROW("r4", "r9") ROW("r5", "r10") ROW("r6", "r11") ROW("r7", "r12")

/* sums[j] += products of `groups` groups of a column with four outputs. groups > 0. r9 to r12 sums, lr end of the
 * column. */
__attribute__((naked)) static void add_products(int32_t *sums, const uint32_t *column, const uint8_t *weights,
                                                uint32_t groups) {
    (void)sums, (void)column, (void)weights, (void)groups;
    __asm volatile("push {r0, r4-r11, lr}\n"
                   "ldm r0, {r9-r12}\n"
                   "mov r0, r1\n"
                   "mov r1, r2\n"
                   "tst r3, #1\n"
                   "add lr, r0, r3, lsl #3\n"
                   "bne 2f\n" /* an odd number of groups is entered in the middle */
                   "1:\n" GROUP "2:\n" GROUP "cmp r0, lr\n"
                   "bne 1b\n"
                   "pop {r0}\n"
                   "stm r0, {r9-r12}\n"
                   "pop {r4-r11, pc}\n");
}

/* Widens x[0, count), and zeros behind it up to a whole group. */
static void widen(uint32_t *column, const int8_t *x, uint32_t count, bool is_plain) {
    uint32_t *to = column;
    for (const int8_t *end = x + (count & ~3U); x != end; x += 4, to += 2) {
        const uint32_t word = fedmote_dsp_word(x) ^ 0x80808080U;
        to[0] = word << 1 & 0x01FE01FEU;
        to[1] = word >> 7 & 0x01FE01FEU;
    }
    if (count % 4U != 0U) {
        uint32_t word = 0;
        memcpy(&word, x, count % 4U);
        word ^= 0x80808080U;
        *to++ = word << 1 & 0x01FE01FEU;
        *to++ = word >> 7 & 0x01FE01FEU;
    }
    if (is_plain) {
        fedmote_dsp_halve(column, (uint32_t)(to - column));
    }
}

void fedmote_fully_connected(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_dense *op = &record->dense;
    uint32_t column[FEDMOTE_DSP_WORDS];
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset;
    const uint32_t groups = (op->in_n + 3U) / 4U;
    const uint8_t *scaling = weights + op->channels.scaling + FEDMOTE_SCALING_BYTES * first;
    const bool is_plain = fedmote_dsp_is_plain(weights + op->channels.scaling);
    if (groups <= COLUMN_GROUPS) {
        widen(column, input, op->in_n, is_plain);
    }
    for (uint32_t c = first; c < end;) {
        const uint8_t *w = weights + op->channels.weights + c / OUTPUTS * groups * GROUP_BYTES;
        int32_t sums[OUTPUTS] = {0, 0, 0, 0};
        for (uint32_t begin = 0; begin < groups; begin += COLUMN_GROUPS) {
            const uint32_t count = groups - begin < COLUMN_GROUPS ? groups - begin : COLUMN_GROUPS;
            if (groups > COLUMN_GROUPS) {
                const uint32_t rest = op->in_n - 4U * begin;
                widen(column, input + 4U * begin, rest < 4U * count ? rest : 4U * count, is_plain);
            }
            add_products(sums, column, w + begin * GROUP_BYTES, count);
        }
        do {
            const int32_t sum = fedmote_wrapping_add(sums[c % OUTPUTS], fedmote_load_s32(scaling));
            output[c] = fedmote_dsp_output(sum, scaling, is_plain, op->output_zero_point);
            scaling += FEDMOTE_SCALING_BYTES;
            c++;
        } while (c % OUTPUTS != 0U && c < end);
    }
    fedmote_dsp_clamp(output + first, end - first, op->activation_min, op->activation_max);
}
