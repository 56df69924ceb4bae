/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a sliding window meets the input: along one axis, and as the patch of the input that one output position of a
 * convolution sees. A patch is worked out once per position and used for all output channels, so padding costs nothing
 * in the inner loops.
 */
#ifndef FEDMOTE_WINDOW_H
#define FEDMOTE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels.h"

/* The taps [first, end) of a window that lie inside the input; tap k reads input origin + k * dilation. */
struct fedmote_window {
    int32_t origin; /* input coordinate of tap 0, negative inside the leading padding */
    uint32_t first, end;
};

/* The window of output coordinate `out` over an input of `size`. No division: kernels are small, cores without a
 * divider are slow. The package reader keeps all coordinates within int32. */
static inline struct fedmote_window fedmote_window_at(uint32_t out, uint32_t stride, uint32_t pad, uint32_t kernel,
                                                      uint32_t dilation, uint32_t size) {
    struct fedmote_window window = {(int32_t)(out * stride) - (int32_t)pad, 0, kernel};
    while (window.first < kernel && window.origin + (int32_t)(window.first * dilation) < 0) {
        window.first++;
    }
    while (window.end > window.first && window.origin + (int32_t)((window.end - 1U) * dilation) >= (int32_t)size) {
        window.end--;
    }
    return window;
}

/* Input coordinate of a tap inside the window. */
static inline uint32_t fedmote_window_tap(const struct fedmote_window *window, uint32_t tap, uint32_t dilation) {
    return (uint32_t)(window->origin + (int32_t)(tap * dilation));
}

/* rows times taps of the kernel that meet the input, each tap some bytes of channels; without any tap, rows is 0. Steps
 * are in bytes. */
struct fedmote_patch {
    const int8_t *x; /* the first tap's bytes in the input */
    uint32_t w;      /* and their place among the weights */
    uint32_t rows, taps;
    uint32_t x_row_step, x_tap_step;
    uint32_t w_row_step, w_tap_step;
    uint32_t first_row, first_tap; /* the kernel's taps before these, and those behind, lie in the padding */
    bool is_whole;                 /* none does */
};

static inline bool fedmote_patch_has(const struct fedmote_patch *patch, uint32_t row, uint32_t tap) {
    return row - patch->first_row < patch->rows && tap - patch->first_tap < patch->taps;
}

/* `w_channels`: weights beside each other at one tap. */
static inline struct fedmote_patch fedmote_patch_at(const struct fedmote_conv *op, const int8_t *input,
                                                    uint32_t w_channels, const struct fedmote_window *rows,
                                                    const struct fedmote_window *columns) {
    struct fedmote_patch patch = {input,          0,    0, columns->end - columns->first, 0, 0, 0, 0, rows->first,
                                  columns->first, false};
    if (rows->first < rows->end && patch.taps > 0U) {
        const uint32_t y = fedmote_window_tap(rows, rows->first, op->dilation_h);
        const uint32_t x = fedmote_window_tap(columns, columns->first, op->dilation_w);
        patch.x = input + (y * op->in_w + x) * op->in_c;
        patch.w = (rows->first * op->kernel_w + columns->first) * w_channels;
        patch.rows = rows->end - rows->first;
        patch.x_row_step = op->dilation_h * op->in_w * op->in_c;
        patch.x_tap_step = op->dilation_w * op->in_c;
        patch.w_row_step = op->kernel_w * w_channels;
        patch.w_tap_step = w_channels;
        patch.is_whole = patch.rows == op->kernel_h && patch.taps == op->kernel_w;
    }
    return patch;
}

#endif
