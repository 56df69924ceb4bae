/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution. Kernels of 3 x 3 without dilation run over four channels and a row of positions at a time:
 * the three input rows become columns of pairs, a pair being the same channel in the upper two rows, so that one SMLAD
 * does two taps. A column is used by up to three positions.
 *
 *     column of channels a b c d      a0|a1  b0|b1  c0|c1  d0|d1  a2|c2  b2|d2       (row 0|row 1, ...; halves
 * low|high)
 *
 * Weights have the same form, as bytes that are widened and doubled once per row: [fours of channels][3 taps of a row]
 * of a0 b0 a1 b1, c0 d0 c1 d1, a2 b2 c2 d2. All other shapes go output by output, with weights in plain order.
 */
#include "dsp.h"
#include "window.h"

#define CHANNELS 4U
#define COLUMN_WORDS 6U
#define MAX_COLUMNS (FEDMOTE_DSP_WORDS / COLUMN_WORDS)
#define TAPS_BYTES 36U /* of the weights of four channels */

/* What the assembly works on; it finds everything by its place. */
struct row {
    /* 0: of the four channels at hand */
    int32_t bias[4];
    uint32_t weights[3][COLUMN_WORDS];
    int32_t zero_point; /* 88 */
    int8_t *out;
    int32_t scaling01[4]; /* 96: multiplier and factor of two channels */
    uint32_t out_step;    /* 112: to the next position */
    int8_t *out_end;
    int32_t scaling23[4]; /* 120 */
    uint32_t back;        /* 136: bytes from behind the columns of a position to those of the next */
    /* 140: of the four channels that come next */
    const uint8_t *scaling, *taps;
    uint32_t *columns; /* 148: the first that is not padding */
    const int8_t *x[3];
    uint32_t x_step[3];          /* 164: from column to column, 0 in a row of padding */
    const uint32_t *columns_end; /* 176 */
    uint32_t x_next[3];          /* 180: to the next four channels */
    int8_t *next_out;            /* 192 */
    /* 196: of all channels */
    int8_t *last_out; /* next_out behind the last channels */
    uint32_t row_bytes;
    const uint32_t *window; /* 204: columns of the first position */
};

/* Three words of weights become six of doubled pairs. r1 from, r12 to. */
#define WEIGHTS                                                                                                        \
    "ldmia r1!, {r3, r5, r7}\n"                                                                                        \
    "sxtb16 r2, r3\n"                                                                                                  \
    "sxtb16 r3, r3, ror #8\n"                                                                                          \
    "sxtb16 r4, r5\n"                                                                                                  \
    "sxtb16 r5, r5, ror #8\n"                                                                                          \
    "sxtb16 r6, r7\n"                                                                                                  \
    "sxtb16 r7, r7, ror #8\n"                                                                                          \
    "sadd16 r2, r2, r2\n"                                                                                              \
    "sadd16 r3, r3, r3\n"                                                                                              \
    "sadd16 r4, r4, r4\n"                                                                                              \
    "sadd16 r5, r5, r5\n"                                                                                              \
    "sadd16 r6, r6, r6\n"                                                                                              \
    "sadd16 r7, r7, r7\n"                                                                                              \
    "stmia r12!, {r2-r7}\n"

/* One column of a position, 12 products in 12 instructions. r0 columns, r1 weights, r8 to r11 sums. */
#define COLUMN                                                                                                         \
    "ldmia r0!, {r2-r5}\n"                                                                                             \
    "ldmia r1!, {r6, r7, r12, lr}\n"                                                                                   \
    "smlad r8, r2, r6, r8\n"                                                                                           \
    "smlad r9, r3, r7, r9\n"                                                                                           \
    "smlad r10, r4, r12, r10\n"                                                                                        \
    "smlad r11, r5, lr, r11\n"                                                                                         \
    "ldmia r0!, {r2, r3}\n"                                                                                            \
    "ldmia r1!, {r6, r7}\n"                                                                                            \
    "smlabb r8, r2, r6, r8\n"                                                                                          \
    "smlatt r10, r2, r6, r10\n"                                                                                        \
    "smlabb r9, r3, r7, r9\n"                                                                                          \
    "smlatt r11, r3, r7, r11\n"

/* r2 zero point, r3 where outputs go. */
#define OUTPUT(x, multiplier, factor, place)                                                                           \
    "smmulr " x ", " x ", " multiplier "\n"                                                                            \
    "smmlar " x ", " x ", " factor ", r2\n"                                                                            \
    "ssat " x ", #8, " x "\n"                                                                                          \
    "strb " x ", [r3, #" place "]\n"

/* All channels of a row, four by four. The row lies at [sp]. */
__attribute__((naked)) static void run_row(struct row *row) {
    (void)row;
    __asm volatile("push {r0, r4-r11, lr}\n"
                   "1: ldr r1, [r0, #140]\n" /* constants of four channels */
                   "ldmia r1!, {r2-r7}\n"
                   "ldmia r1!, {r8-r12, lr}\n"
                   "str r1, [r0, #140]\n"
                   "strd r2, r5, [r0]\n"
                   "strd r8, r11, [r0, #8]\n"
                   "strd r3, r4, [r0, #96]\n"
                   "strd r6, r7, [r0, #104]\n"
                   "strd r9, r10, [r0, #120]\n"
                   "strd r12, lr, [r0, #128]\n"
                   "ldr r1, [r0, #144]\n"
                   "add r12, r0, #16\n" WEIGHTS WEIGHTS WEIGHTS "str r1, [r0, #144]\n"
                   "add r1, r0, #148\n" /* columns: r1, inputs: r8 to r10, their steps: r11, r12, lr, end: r0 */
                   "ldm r1, {r1, r8-r12, lr}\n"
                   "ldr r0, [r0, #176]\n"
                   "2: ldr r2, [r8]\n"
                   "add r8, r8, r11\n"
                   "ldr r4, [r9]\n"
                   "add r9, r9, r12\n"
                   "ldr r7, [r10]\n"
                   "add r10, r10, lr\n"
                   "pkhbt r3, r2, r4, lsl #16\n"
                   "pkhtb r5, r4, r2, asr #16\n"
                   "sxtb16 r2, r3\n"
                   "sxtb16 r3, r3, ror #8\n"
                   "sxtb16 r4, r5\n"
                   "sxtb16 r5, r5, ror #8\n"
                   "sxtb16 r6, r7\n"
                   "sxtb16 r7, r7, ror #8\n"
                   "stmia r1!, {r2-r7}\n"
                   "cmp r1, r0\n"
                   "bne 2b\n"
                   "ldr r0, [sp]\n"
                   "add r12, r0, #152\n"
                   "ldm r12, {r1-r11}\n" /* x, x_step, columns_end, x_next, next_out */
                   "add r1, r1, r8\n"
                   "add r2, r2, r9\n"
                   "add r3, r3, r10\n"
                   "stm r12, {r1-r3}\n"
                   "str r11, [r0, #92]\n"
                   "ldr r1, [r0, #200]\n"
                   "add r1, r1, r11\n"
                   "str r1, [r0, #116]\n"
                   "add r11, r11, #4\n"
                   "str r11, [r0, #192]\n"
                   "ldr r0, [r0, #204]\n"
                   "3: ldr r1, [sp]\n" /* a position: bias, weights, then what makes outputs */
                   "ldmia r1!, {r8-r11}\n" COLUMN COLUMN COLUMN
                   "ldmia r1!, {r2-r7, r12}\n" OUTPUT("r8", "r4", "r5", "0")
                       OUTPUT("r9", "r6", "r7", "1") "add lr, r3, r12\n"
                                                     "str lr, [r1, #-24]\n"
                                                     "ldm r1, {r1, r4-r7, r12}\n" OUTPUT("r10", "r4", "r5", "2")
                                                         OUTPUT("r11", "r6", "r7", "3") "sub r0, r0, r12\n"
                                                                                        "cmp lr, r1\n"
                                                                                        "bne.w 3b\n"
                                                                                        "ldr r0, [sp]\n"
                                                                                        "ldrd r1, r2, [r0, #192]\n"
                                                                                        "cmp r1, r2\n"
                                                                                        "bne.w 1b\n"
                                                                                        "pop {r0, r4-r11, pc}\n");
}

struct job {
    const struct fedmote_conv *op;
    const int8_t *input;
    const uint8_t *weights, *scaling;
    bool is_3x3, is_plain;
};

/* The positions [first, end) of a row whose windows hold columns of the input; `out`: of the row. */
static void convolve_columns(uint32_t *columns, const struct job *job, const struct fedmote_window *rows,
                             uint32_t first, uint32_t end, int8_t *out) {
    const struct fedmote_conv *op = job->op;
    const uint32_t padding = ((uint32_t)op->input_zero_point & 0xFFFFU) * 0x10001U;
    const uint32_t padding_bytes = (uint32_t)(uint8_t)op->input_zero_point * 0x01010101U;
    const int32_t origin = (int32_t)(first * op->stride_w) - (int32_t)op->pad_left;
    const uint32_t count = (end - first - 1U) * op->stride_w + 3U; /* columns */
    const uint32_t left = origin < 0 ? (uint32_t)-origin : 0U;     /* of them in front of the input */
    const uint32_t inside = op->in_w - (uint32_t)(origin + (int32_t)left);
    const uint32_t right = left + inside < count ? left + inside : count;
    struct row row = {.zero_point = op->output_zero_point,
                      .out_step = op->out_c,
                      .back = 4U * COLUMN_WORDS * (3U - op->stride_w),
                      .scaling = job->scaling,
                      .taps = job->weights,
                      .columns = columns + COLUMN_WORDS * left,
                      .columns_end = columns + COLUMN_WORDS * right,
                      .next_out = out + first * op->out_c,
                      .last_out = out + first * op->out_c + op->out_c,
                      .row_bytes = (end - first) * op->out_c,
                      .window = columns};
    for (uint32_t i = 0; i < COLUMN_WORDS * count; i++) {
        if (i == COLUMN_WORDS * left) {
            i = COLUMN_WORDS * right;
            if (right == count) {
                break;
            }
        }
        columns[i] = padding;
    }
    for (uint32_t i = 0; i < 3U; i++) {
        const bool is_inside = i - rows->first < rows->end - rows->first;
        const int32_t place = (rows->origin + (int32_t)i) * (int32_t)op->in_w + origin + (int32_t)left;
        row.x[i] = is_inside ? job->input + place * (int32_t)op->in_c : (const int8_t *)&padding_bytes;
        row.x_step[i] = is_inside ? op->in_c : 0U;
        row.x_next[i] = is_inside ? CHANNELS : 0U;
    }
    run_row(&row);
}

/* Where the weight of a tap lies. */
static uint32_t weight_at(const struct job *job, uint32_t row, uint32_t tap, uint32_t c) {
    if (!job->is_3x3) {
        return (row * job->op->kernel_w + tap) * job->op->out_c + c;
    }
    const uint32_t of_tap = c / CHANNELS * TAPS_BYTES + tap * (TAPS_BYTES / 3U);
    return of_tap + (row == 2U ? 8U + c % 4U : c / 2U % 2U * 4U + row * 2U + c % 2U);
}

/* One output of any shape. */
static int8_t convolve_one(const struct job *job, const struct fedmote_window *rows, const struct fedmote_window *taps,
                           uint32_t c) {
    const struct fedmote_conv *op = job->op;
    const uint8_t *scaling = job->scaling + FEDMOTE_SCALING_BYTES * c;
    const int8_t *x = job->input + c / op->group_out_c, *w = (const int8_t *)job->weights;
    int32_t sum = 0;
    for (uint32_t row = 0; row < op->kernel_h; row++) {
        const int32_t y = rows->origin + (int32_t)(row * op->dilation_h);
        for (uint32_t tap = 0; tap < op->kernel_w; tap++) {
            const bool is_inside =
                row - rows->first < rows->end - rows->first && tap - taps->first < taps->end - taps->first;
            const int32_t place = y * (int32_t)op->in_w + taps->origin + (int32_t)(tap * op->dilation_w);
            sum += (is_inside ? x[place * (int32_t)op->in_c] : op->input_zero_point) * w[weight_at(job, row, tap, c)];
        }
    }
    const int32_t biased = fedmote_wrapping_add(job->is_plain ? sum : 2 * sum, fedmote_load_s32(scaling));
    return fedmote_dsp_output(biased, scaling, job->is_plain, op->output_zero_point);
}

/* The positions [first, end) of a row. */
static void convolve_any(const struct job *job, const struct fedmote_window *rows, uint32_t first, uint32_t end,
                         int8_t *out) {
    const struct fedmote_conv *op = job->op;
    out += first * op->out_c;
    for (uint32_t x = first; x < end; x++) {
        const struct fedmote_window taps =
            fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
        for (uint32_t c = 0; c < op->out_c; c++) {
            *out++ = convolve_one(job, rows, &taps, c);
        }
    }
}

/* Whether the window of a position holds columns of the input. */
static bool meets_input(const struct fedmote_conv *op, uint32_t x) {
    const int32_t origin = (int32_t)(x * op->stride_w) - (int32_t)op->pad_left;
    return origin > -3 && origin < (int32_t)op->in_w;
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    const struct fedmote_conv *op = &record->conv;
    uint32_t columns[COLUMN_WORDS * MAX_COLUMNS];
    const uint8_t *scaling = weights + op->channels.scaling;
    const struct job job = {op,      memory + op->op.input_offset, weights + op->channels.weights,
                            scaling, fedmote_dsp_is_3x3(op),       fedmote_dsp_is_plain(scaling)};
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    const uint32_t at_once = (MAX_COLUMNS - 3U) / op->stride_w + 1U;
    for (uint32_t y = first; y < end; y++, output += op->out_w * op->out_c) {
        const struct fedmote_window rows =
            fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        for (uint32_t x = 0, stop; x < op->out_w; x = stop) {
            stop = op->out_w - x < at_once ? op->out_w : x + at_once;
            if (job.is_3x3 && !job.is_plain && meets_input(op, x) && meets_input(op, stop - 1U)) {
                convolve_columns(columns, &job, &rows, x, stop, output);
            } else {
                convolve_any(&job, &rows, x, stop, output);
            }
        }
        fedmote_dsp_clamp(output, op->out_w * op->out_c, op->activation_min, op->activation_max);
    }
}
