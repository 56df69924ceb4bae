/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a sliding window meets the input, along one axis.
 */
#ifndef FEDMOTE_WINDOW_H
#define FEDMOTE_WINDOW_H

#include <stdint.h>

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

#endif
