/* SPDX-License-Identifier: Apache-2.0
 *
 * Average over windows, as src/kernels/average_pool_2d.c says; four channels at a time, whose sums are halves of two
 * words, as long as these hold them.
 */
#include "dsp.h"
#include "window.h"

#define MOST_ELEMENTS 255U /* of a window whose sums are int16 */

static int32_t rounded_mean(int32_t sum, int32_t count) {
    return sum > 0 ? (sum + count / 2) / count : (sum - count / 2) / count;
}

/* Elements of one window: height rows of width, from x on. */
struct area {
    const int8_t *x;
    uint32_t height, width, row_gap; /* from behind a row to the next, in bytes */
    uint32_t channels;
};

/* Sums of channel c, or of the four channels from c on. */
static int32_t sum_one(const struct area *area, uint32_t c) {
    const int8_t *x = area->x + c;
    int32_t sum = 0;
    for (uint32_t row = area->height; row > 0U; row--, x += area->row_gap) {
        for (uint32_t i = area->width; i > 0U; i--, x += area->channels) {
            sum += *x;
        }
    }
    return sum;
}

static void sum_four(int32_t *sums, const struct area *area, uint32_t c) {
    const int8_t *x = area->x + c;
    uint32_t even = 0, odd = 0; /* channels 0 and 2, 1 and 3 */
    for (uint32_t row = area->height; row > 0U; row--, x += area->row_gap) {
        for (uint32_t i = area->width; i > 0U; i--, x += area->channels) {
            const uint32_t word = fedmote_dsp_word(x);
            __asm("sxtab16 %0, %0, %1" : "+r"(even) : "r"(word));
            __asm("sxtab16 %0, %0, %1, ror #8" : "+r"(odd) : "r"(word));
        }
    }
    sums[0] = (int16_t)even;
    sums[1] = (int16_t)odd;
    sums[2] = (int32_t)even >> 16;
    sums[3] = (int32_t)odd >> 16;
}

void fedmote_average_pool_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                             uint32_t end) {
    const struct fedmote_pool *op = &record->pool;
    (void)weights;
    const int8_t *input = memory + op->op.input_offset;
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->channels;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows = fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, 1U, op->in_h);
        const uint32_t top = fedmote_window_tap(&rows, rows.first, 1U);
        for (uint32_t x = 0; x < op->out_w; x++) {
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, 1U, op->in_w);
            const uint32_t left = fedmote_window_tap(&columns, columns.first, 1U);
            const uint32_t width = columns.end - columns.first, height = rows.end - rows.first;
            const struct area area = {input + (top * op->in_w + left) * op->channels, height, width,
                                      (op->in_w - width) * op->channels, op->channels};
            for (uint32_t c = 0, count; c < op->channels; c += count) {
                int32_t sums[4];
                count = 1;
                if (op->channels - c >= 4U && height * width <= MOST_ELEMENTS) {
                    count = 4;
                    sum_four(sums, &area, c);
                } else {
                    sums[0] = sum_one(&area, c);
                }
                for (uint32_t i = 0; i < count; i++) {
                    const int32_t mean = rounded_mean(sums[i], (int32_t)(height * width));
                    *output++ = fedmote_clamp(mean, op->activation_min, op->activation_max);
                }
            }
        }
    }
}
