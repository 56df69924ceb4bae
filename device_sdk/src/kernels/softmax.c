/* SPDX-License-Identifier: Apache-2.0
 *
 * Softmax of rows, as TensorFlow Lite Micro's fixed-point arithmetic has it, with the exponentials from a table. Each
 * element is read before its result is written, so that a row may be done in place.
 */
#include "../little_endian.h"
#include "kernels.h"

/* a * b / 2^31, rounded half up. */
static int32_t high(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b + (INT64_C(1) << 30)) >> 31); }

static int32_t saturated(int64_t value) {
    return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
}

/* 1 / (1 + x), Q31, of 0 <= x < 1 in Q31: three steps of Newton's from 48/17 - 32/17 * d, all in Q29. */
static int32_t reciprocal(uint32_t x) {
    const int32_t d = (int32_t)(((uint64_t)x + (UINT64_C(1) << 31)) >> 1);
    int32_t y = 1515870810 + high(d, -1010580540);
    for (uint32_t step = 0; step < 3U; step++) {
        y += saturated((int64_t)high(y, (INT32_C(1) << 29) - high(d, y)) * 4);
    }
    return saturated((int64_t)y * 2);
}

static uint32_t bit_width(uint32_t value) {
    uint32_t width = 0;
    for (; value != 0U; value >>= 1) {
        width++;
    }
    return width;
}

static void softmax(const int8_t *x, int8_t *out, uint32_t n, const uint8_t *exponentials) {
    int32_t largest = INT8_MIN;
    for (uint32_t i = 0; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    uint32_t sum = 0; /* Q12.19 */
    for (uint32_t i = 0; i < n; i++) {
        sum += (fedmote_load_u32(exponentials + 4 * (largest - x[i])) + (1U << 11)) >> 12;
    }
    const uint32_t width = bit_width(sum);
    const int32_t scale = reciprocal((sum << (32U - width)) - (UINT32_C(1) << 31));
    const uint32_t right = width + 3U; /* the sum's integer bits, and from Q31 to 1/256 */
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t share = (uint32_t)high(scale, fedmote_load_s32(exponentials + 4 * (largest - x[i])));
        const uint32_t q = right > 31U ? 0U : (share + (UINT32_C(1) << (right - 1U))) >> right;
        out[i] = (int8_t)((q > 255U ? 255 : (int32_t)q) - 128);
    }
}

void fedmote_softmax(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    const struct fedmote_softmax_rows *op = &record->softmax;
    for (uint32_t row = first; row < end; row++) {
        softmax(memory + op->op.input_offset + row * op->n, memory + op->op.output_offset + row * op->n, op->n,
                weights + op->exponentials);
    }
}
