/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution, two positions and two channels at a time: the patches of both positions become columns of widened
 * inputs, padding included (as zero points), and every pair of channels runs over them.
 */
#include "dsp.h"
#include "window.h"

#define STEP 4U                    /* words from group to group: two columns take turns */
#define COLUMN (FEDMOTE_DSP_WORDS) /* inputs of one */

struct job {
    const struct fedmote_conv *op;
    const int8_t *input, *weights;
    struct fedmote_scaling scaling;
    uint32_t products; /* of one sum */
};

/* Two positions: their patches and where their outputs go; a last position without a second is done twice. */
struct pair {
    struct fedmote_patch patches[2];
    int8_t *outputs[2];
};

/* The part [begin, end) of one patch becomes a column; `shift`: of the group's first channel in the input. */
static void gather(uint32_t *column, const struct job *job, const struct fedmote_patch *patch, uint32_t shift,
                   uint32_t begin, uint32_t end) {
    const struct fedmote_conv *op = job->op;
    const bool is_run = patch->x_tap_step == op->group_in_c;
    const uint32_t runs = is_run ? 1U : patch->taps;
    const uint32_t length = is_run ? patch->taps * op->group_in_c : op->group_in_c;
    if (!patch->is_whole) {
        const uint32_t padding = fedmote_dsp_twice(op->input_zero_point);
        for (uint32_t *group = column; group != column + (end - begin + 3U) / 4U * STEP; group += STEP) {
            group[0] = padding;
            group[1] = padding;
        }
    }
    for (uint32_t row = 0; row < patch->rows; row++) {
        for (uint32_t run = 0; run < runs; run++) {
            const int8_t *x = patch->x + shift + row * patch->x_row_step + run * patch->x_tap_step;
            const uint32_t place = patch->w + row * patch->w_row_step + run * patch->w_tap_step;
            const uint32_t from = place < begin ? begin : place;
            const uint32_t to = place + length < end ? place + length : end;
            if (from < to) {
                fedmote_dsp_widen(column, STEP, from - begin, x + (from - place), to - from);
            }
        }
    }
}

/* sums[c * 2 + p] of channels from `c` on, over all products. The columns hold the part [0, COLUMN) already; if
 * there are more products, they are gathered part by part for each pair of channels. */
static void add_products(int32_t *sums, uint32_t *columns, const struct job *job, const struct pair *pair,
                         uint32_t shift, const int8_t *w, uint32_t stride) {
    for (uint32_t begin = 0; begin < job->products; begin += COLUMN) {
        const uint32_t rest = job->products - begin;
        const uint32_t count = rest < COLUMN ? rest : COLUMN;
        if (job->products > COLUMN) {
            gather(columns, job, &pair->patches[0], shift, begin, begin + count);
            gather(columns + 2, job, &pair->patches[1], shift, begin, begin + count);
        }
        if (count >= 4U) {
            fedmote_dsp_dot_2x2(sums, columns, w + begin, stride, count / 4U);
        }
        for (uint32_t i = count & ~3U; i < count; i++) {
            for (uint32_t p = 0; p < 2U; p++) {
                const int32_t value = fedmote_dsp_value(columns + 2U * p, STEP, i);
                sums[p] += value * w[begin + i];
                sums[2U + p] += value * w[begin + stride + i];
            }
        }
    }
}

/* The output channels of one group, from `first` on. */
static void convolve_group(uint32_t *columns, const struct job *job, const struct pair *pair, uint32_t shift,
                           uint32_t first) {
    const uint32_t end = first + job->op->group_out_c, products = job->products;
    struct fedmote_dsp_ending ending = fedmote_dsp_ending_at(&job->scaling, first);
    const int8_t *w = job->weights + first * products;
    if (products <= COLUMN) {
        gather(columns, job, &pair->patches[0], shift, 0U, products);
        gather(columns + 2, job, &pair->patches[1], shift, 0U, products);
    }
    uint32_t c = first;
    for (; c + 2U <= end; c += 2U, w += 2U * products) {
        int32_t sums[4] = {0, 0, 0, 0};
        add_products(sums, columns, job, pair, shift, w, products);
        fedmote_dsp_finish_2x2(sums, &ending, pair->outputs[0] + c, pair->outputs[1] + c);
    }
    if (c != end) {
        int32_t sums[4] = {0, 0, 0, 0};
        add_products(sums, columns, job, pair, shift, w, 0U);
        struct fedmote_dsp_ending again = ending;
        fedmote_dsp_finish(sums + 1, &again, pair->outputs[1] + c, 1U);
        fedmote_dsp_finish(sums, &ending, pair->outputs[0] + c, 1U);
    }
}

static void convolve(uint32_t *columns, const struct job *job, const struct pair *pair) {
    const uint32_t out_c = job->op->out_c;
    for (uint32_t c = 0, shift = 0; c < out_c; c += job->op->group_out_c, shift += job->op->group_in_c) {
        convolve_group(columns, job, pair, shift, c);
    }
    fedmote_dsp_clamp(pair->outputs[0], out_c, &job->scaling);
    fedmote_dsp_clamp(pair->outputs[1], out_c, &job->scaling);
}

static struct fedmote_patch patch_at(const struct job *job, uint32_t y, uint32_t x) {
    const struct fedmote_conv *op = job->op;
    const struct fedmote_window rows =
        fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
    const struct fedmote_window columns =
        fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
    return fedmote_patch_at(op, job->input, op->group_in_c, &rows, &columns);
}

void fedmote_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    const struct fedmote_conv *op = &record->conv;
    uint32_t columns[FEDMOTE_DSP_WORDS];
    const struct job job = {
        op, memory + op->op.input_offset, (const int8_t *)(weights + op->channels.weights),
        fedmote_scaling_of(&op->channels, weights, op->output_zero_point, op->activation_min, op->activation_max),
        op->kernel_h * op->kernel_w * op->group_in_c};
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    struct pair pair;
    uint32_t filled = 0;
    for (uint32_t y = first; y < end; y++) {
        for (uint32_t x = 0; x < op->out_w; x++, output += op->out_c) {
            pair.patches[filled] = patch_at(&job, y, x);
            pair.outputs[filled] = output;
            filled++;
            if (filled == 2U) {
                convolve(columns, &job, &pair);
                filled = 0;
            }
        }
    }
    if (filled == 1U) {
        pair.patches[1] = pair.patches[0];
        pair.outputs[1] = pair.outputs[0];
        convolve(columns, &job, &pair);
    }
}
