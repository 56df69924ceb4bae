/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise 2-D convolution: the taps of one channel become neighbours, so that one instruction multiplies all of them.
 * 16 channels of up to 4 rows are stored interleaved: s8[columns][16 channels][4 rows]; a channel's window is then four
 * words that are 64 bytes apart, and the next channel's lies 4 bytes further. Weights: s8[out_c][kernel_h * kernel_w].
 * Kernels with more than four rows or columns, dilation or longer strides are done four channels side by side, tap by
 * tap; with several outputs for an input channel the operator is a convolution in groups, and its weights are arranged
 * for that.
 */
#include <arm_mve.h>
#include <stddef.h>

#include "conv_rows.h"
#include "helium.h"

#define EDGE 4U          /* rows and columns of a kernel at most */
#define COLUMN_BYTES 64U /* 16 channels of four rows */
#define COLUMNS ((FEDMOTE_HELIUM_POSITIONS - 1U) * 2U + EDGE)

/* What the assembly reads: its offsets are there. */
struct windows {
    const int8_t *columns; /* 0 */
    const int8_t *weights; /* 4: of the first channel */
    int32_t *sums;         /* 8: s32[channels][positions] */
    uint32_t channels;     /* 12 */
    uint32_t taps;         /* 16 */
    uint32_t lanes;        /* 20: mask of the taps among 4 columns of 4 rows */
    uint8_t places[16];    /* 24: of the taps among the weights */
};

typedef char offsets_in_the_assembly[offsetof(struct windows, places) == 24U ? 1 : -1];

/* Position p of n: sums in even registers. q7: the words of the fourth position. */
#define WINDOW(sum, distance)                                                                                          \
    "vldrw.u32 q0, [q7, #" distance "]\n"                                                                              \
    "vmladav.s8 " sum ", q0, q1\n"
#define WINDOWS_1(step) WINDOW("r0", "-3 * 64 * " step)
#define WINDOWS_2(step) WINDOWS_1(step) WINDOW("r2", "-2 * 64 * " step)
#define WINDOWS_3(step) WINDOWS_2(step) WINDOW("r4", "-1 * 64 * " step)
#define WINDOWS_4(step) WINDOWS_3(step) WINDOW("r6", "0")
#define WINDOWS_5(step) WINDOWS_4(step) WINDOW("r8", "1 * 64 * " step)
#define WINDOWS_6(step) WINDOWS_5(step) WINDOW("r10", "2 * 64 * " step)
#define WINDOWS_7(step) WINDOWS_6(step) WINDOW("r12", "3 * 64 * " step)
#define SUMS_1 "{r0}"
#define SUMS_2 "{r0, r2}"
#define SUMS_3 "{r0, r2, r4}"
#define SUMS_4 "{r0, r2, r4, r6}"
#define SUMS_5 "{r0, r2, r4, r6, r8}"
#define SUMS_6 "{r0, r2, r4, r6, r8, r10}"
#define SUMS_7 "{r0, r2, r4, r6, r8, r10, r12}"

#define MULTIPLY(n, step)                                                                                              \
    __attribute__((naked)) static void multiply_##n##_##step(const struct windows *windows) {                          \
        (void)windows;                                                                                                 \
        __asm volatile("push {r4-r11, lr}\n"                                                                           \
                       "vpush {d8-d15}\n"                                                                              \
                       "mov r7, r0\n"                                                                                  \
                       "mov r0, #0\n"                                                                                  \
                       "vidup.u32 q7, r0, #1\n"                                                                        \
                       "vshl.i32 q7, q7, #6\n"                                                                         \
                       "ldr r0, [r7]\n"                                                                                \
                       "add r0, r0, #3 * 64 * " #step "\n"                                                             \
                       "vadd.i32 q7, q7, r0\n"                                                                         \
                       "ldr r0, [r7, #20]\n"                                                                           \
                       "vmsr p0, r0\n"                                                                                 \
                       "add r0, r7, #24\n"                                                                             \
                       "vldrb.u8 q2, [r0]\n"                                                                           \
                       "ldr r1, [r7, #4]\n"                                                                            \
                       "ldr r3, [r7, #8]\n"                                                                            \
                       "ldr r0, [r7, #12]\n"                                                                           \
                       "ldr r9, [r7, #16]\n"                                                                           \
                       "mov r5, #4\n"                                                                                  \
                       "dls lr, r0\n"                                                                                  \
                       "1: vpst\n"                                                                                     \
                       "vldrbt.u8 q1, [r1, q2]\n"                                                                      \
                       "add r1, r1, r9\n" WINDOWS_##n(#step) "vadd.i32 q7, q7, r5\n"                                   \
                                                             "stm r3!, " SUMS_##n "\n"                                 \
                                                                                  "le lr, 1b\n"                        \
                                                                                  "vpop {d8-d15}\n"                    \
                                                                                  "pop {r4-r11, pc}\n");               \
    }
#define MULTIPLY_ALL(step)                                                                                             \
    MULTIPLY(1, step)                                                                                                  \
    MULTIPLY(2, step)                                                                                                  \
    MULTIPLY(3, step)                                                                                                  \
    MULTIPLY(4, step)                                                                                                  \
    MULTIPLY(5, step)                                                                                                  \
    MULTIPLY(6, step)                                                                                                  \
    MULTIPLY(7, step)
MULTIPLY_ALL(1)
MULTIPLY_ALL(2)

typedef void multiply(const struct windows *windows);
static multiply *const multiply_of[2][FEDMOTE_HELIUM_POSITIONS] = {
    {multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1, multiply_6_1, multiply_7_1},
    {multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2, multiply_5_2, multiply_6_2, multiply_7_2}};

/* Where the rows of a window are, from the first column on: bytes from column to column, 0 for a row of padding. */
struct rows {
    const int8_t *x[EDGE];
    uint32_t step[EDGE];
};

/* 16 channels of whole columns. */
static void interleave(int8_t *columns, const struct rows *rows, uint32_t count) {
    const int8_t *x0 = rows->x[0], *x1 = rows->x[1], *x2 = rows->x[2], *x3 = rows->x[3];
    __asm volatile("dls lr, %5\n"
                   "1: vldrb.u8 q0, [%1]\n"
                   "add %1, %1, %6\n"
                   "vldrb.u8 q1, [%2]\n"
                   "add %2, %2, %7\n"
                   "vldrb.u8 q2, [%3]\n"
                   "add %3, %3, %8\n"
                   "vldrb.u8 q3, [%4]\n"
                   "add %4, %4, %9\n"
                   "vst40.8 {q0, q1, q2, q3}, [%0]\n"
                   "vst41.8 {q0, q1, q2, q3}, [%0]\n"
                   "vst42.8 {q0, q1, q2, q3}, [%0]\n"
                   "vst43.8 {q0, q1, q2, q3}, [%0]!\n"
                   "le lr, 1b\n"
                   : "+r"(columns), "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)
                   : "r"(count), "r"(rows->step[0]), "r"(rows->step[1]), "r"(rows->step[2]), "r"(rows->step[3])
                   : "lr", "q0", "q1", "q2", "q3", "memory");
}

/* Fewer channels. */
static void interleave_some(int8_t *columns, struct rows *rows, uint32_t count, uint32_t channels) {
    const mve_pred16_t lanes = vctp8q(channels);
    const uint8x16_t places = vshlq_n_u8(vidupq_n_u8(0U, 1), 2);
    for (uint32_t column = 0; column < count; column++, columns += COLUMN_BYTES) {
        for (uint32_t row = 0; row < EDGE; row++) {
            vstrbq_scatter_offset_p_s8(columns + row, places, vldrbq_z_s8(rows->x[row], lanes), lanes);
            rows->x[row] += rows->step[row];
        }
    }
}

/* The columns from `left` on that the windows of output row y see: `count` of them, `channels` of their channels. */
static void gather(int8_t *columns, const struct fedmote_conv *op, const int8_t *input, uint32_t y, int32_t left,
                   uint32_t count, uint32_t channels) {
    int8_t padding[16];
    vst1q_s8(padding, vdupq_n_s8((int8_t)op->input_zero_point));
    const int32_t right = left + (int32_t)count, width = (int32_t)op->in_w;
    int32_t from = left < 0 ? 0 : left;
    const int32_t to = right > width ? width : right;
    if (from >= to) {
        fedmote_helium_fill(columns, op->input_zero_point, COLUMN_BYTES * count);
        return;
    }
    fedmote_helium_fill(columns, op->input_zero_point, COLUMN_BYTES * (uint32_t)(from - left));
    fedmote_helium_fill(columns + COLUMN_BYTES * (uint32_t)(to - left), op->input_zero_point,
                        COLUMN_BYTES * (uint32_t)(right - to));
    struct rows rows;
    for (uint32_t ky = 0; ky < EDGE; ky++) {
        const int32_t row = (int32_t)(y * op->stride_h + ky) - (int32_t)op->pad_top;
        const bool is_row = ky < op->kernel_h && row >= 0 && row < (int32_t)op->in_h;
        rows.x[ky] = is_row ? input + ((uint32_t)row * op->in_w + (uint32_t)from) * op->in_c : padding;
        rows.step[ky] = is_row ? op->in_c : 0U;
    }
    columns += COLUMN_BYTES * (uint32_t)(from - left);
    if (channels == FEDMOTE_HELIUM_LANES) {
        interleave(columns, &rows, (uint32_t)(to - from));
    } else {
        interleave_some(columns, &rows, (uint32_t)(to - from), channels);
    }
}

static bool has_windows(const struct fedmote_conv *op) {
    return op->kernel_h <= EDGE && op->kernel_w <= EDGE && (op->dilation_h == 1U || op->kernel_h == 1U) &&
           (op->dilation_w == 1U || op->kernel_w == 1U) && op->stride_w <= 2U;
}

static void convolve_windows(const struct fedmote_conv *op, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    int8_t columns[COLUMNS * COLUMN_BYTES];
    int32_t sums[FEDMOTE_HELIUM_CHANNELS * FEDMOTE_HELIUM_POSITIONS];
    const struct fedmote_scaling plain =
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max);
    const struct fedmote_helium_scaling scaling = fedmote_helium_scaling_of(&plain, op->out_c);
    const int8_t *w = (const int8_t *)(weights + op->channels.weights);
    struct windows windows = {.columns = columns, .taps = op->kernel_h * op->kernel_w};
    for (uint32_t kx = 0; kx < op->kernel_w; kx++) {
        for (uint32_t ky = 0; ky < op->kernel_h; ky++) {
            windows.lanes |= 1U << (EDGE * kx + ky);
            windows.places[EDGE * kx + ky] = (uint8_t)(ky * op->kernel_w + kx);
        }
    }
    const uint32_t limit = fedmote_helium_block_positions(op->out_w, FEDMOTE_HELIUM_POSITIONS);
    for (uint32_t y = first; y < end; y++) {
        for (uint32_t x = 0, positions; x < op->out_w; x += positions) {
            positions = fedmote_helium_smaller(op->out_w - x, limit);
            const int32_t left = (int32_t)(x * op->stride_w) - (int32_t)op->pad_left;
            const uint32_t count = (positions - 1U) * op->stride_w + op->kernel_w;
            for (uint32_t c = 0, channels; c < op->out_c; c += channels) {
                channels = fedmote_helium_smaller(op->out_c - c, FEDMOTE_HELIUM_CHANNELS);
                for (uint32_t i = 0; i < channels; i += FEDMOTE_HELIUM_LANES) {
                    windows.channels = fedmote_helium_smaller(channels - i, FEDMOTE_HELIUM_LANES);
                    windows.weights = w + (c + i) * windows.taps;
                    windows.sums = sums + i * positions;
                    gather(columns, op, memory + op->op.input_offset + c + i, y, left, count, windows.channels);
                    multiply_of[op->stride_w - 1U][positions - 1U](&windows);
                }
                fedmote_helium_finish(memory + op->op.output_offset + (y * op->out_w + x) * op->out_c + c, op->out_c,
                                      &scaling, c, sums, channels, positions);
            }
        }
    }
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0U, 1), op->kernel_h * op->kernel_w);
    for (uint32_t c = 0; c < op->out_c; c += 4U) {
        const mve_pred16_t lanes = vctp32q(op->out_c - c);
        int32x4_t total = vdupq_n_s32(0);
        const int8_t *w = weights + c * op->kernel_h * op->kernel_w;
        const int8_t *row = patch->x + c;
        for (uint32_t ky = 0; ky < op->kernel_h; ky++) {
            const bool is_row = ky - patch->first_row < patch->rows;
            const int8_t *x = row;
            for (uint32_t kx = 0; kx < op->kernel_w; kx++, w++) {
                const int32x4_t factors = vldrbq_gather_offset_z_s32(w, places, lanes);
                if (is_row && kx - patch->first_tap < patch->taps) {
                    total = vaddq_s32(total, vmulq_s32(vldrbq_z_s32(x, lanes), factors));
                    x += patch->x_tap_step;
                } else {
                    total = vmlaq_n_s32(total, factors, op->input_zero_point);
                }
            }
            row += is_row ? patch->x_row_step : 0U;
        }
        int32_t sums[4];
        vst1q_s32(sums, total);
        const uint32_t left = op->out_c - c;
        fedmote_scale(out + c, scaling, c, sums, left < 4U ? left : 4U);
    }
}

void fedmote_depthwise_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory,
                               uint32_t first, uint32_t end) {
    const struct fedmote_conv *op = &record->conv;
    if (op->group_out_c > 1U) {
        fedmote_conv_2d(record, weights, memory, first, end);
    } else if (has_windows(op)) {
        convolve_windows(op, weights, memory, first, end);
    } else {
        fedmote_conv_rows(op, weights, memory, first, end, op->out_c, convolve);
    }
}
