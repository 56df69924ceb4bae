/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution. What one position sees is brought together in one piece, in the order of the weights and with the
 * input's zero point for taps in the padding, so that each output is one long dot product. A patch that is one piece in
 * memory is used where it lies; one that is too long for the stack comes in several pieces.
 */
#include <string.h>

#include "conv_rows.h"
#include "dot.h"

/* Bytes of a patch that are brought together at a time. */
#define PIECE_BYTES 256U

/* The bytes [skip, skip + left) of what add() is given go to `out`. */
struct piece {
    int8_t *out;
    uint32_t skip, left;
};

/* `count` bytes more, those at x or, if it is NULL, as many of `padding`. */
static void add(struct piece *piece, const int8_t *x, int32_t padding, uint32_t count) {
    const uint32_t skipped = piece->skip < count ? piece->skip : count;
    piece->skip -= skipped;
    count -= skipped;
    count = count < piece->left ? count : piece->left;
    if (count == 0U) {
        return;
    }
    if (x != NULL) {
        memcpy(piece->out, x + skipped, count);
    } else {
        memset(piece->out, padding, count);
    }
    piece->out += count;
    piece->left -= count;
}

/* The bytes [from, from + length) of s8[kernel_h][kernel_w][group_in_c], x being the first of the group's channels in
 * the patch. */
static void gather(int8_t *out, const struct fedmote_conv *op, const struct fedmote_patch *patch, const int8_t *x,
                   uint32_t from, uint32_t length) {
    const uint32_t channels = op->group_in_c, left = patch->first_tap, right = op->kernel_w - left - patch->taps;
    const bool is_run = patch->x_tap_step == channels;
    const uint32_t runs = is_run ? 1U : patch->taps, run_bytes = is_run ? patch->taps * channels : channels;
    struct piece piece = {out, from, length};
    for (uint32_t row = 0; row < op->kernel_h && piece.left > 0U; row++) {
        const uint32_t y = row - patch->first_row;
        if (y >= patch->rows) {
            add(&piece, NULL, op->input_zero_point, op->kernel_w * channels);
            continue;
        }
        add(&piece, NULL, op->input_zero_point, left * channels);
        for (uint32_t run = 0; run < runs; run++) {
            add(&piece, x + y * patch->x_row_step + run * patch->x_tap_step, 0, run_bytes);
        }
        add(&piece, NULL, op->input_zero_point, right * channels);
    }
}

/* All output channels of one position: out s8[out_c]. */
static void convolve(const struct fedmote_conv *op, const struct fedmote_scaling *scaling,
                     const struct fedmote_patch *patch, const int8_t *weights, int8_t *out) {
    const uint32_t row_bytes = op->kernel_w * op->group_in_c, bytes = op->kernel_h * row_bytes;
    const bool is_one_tap = op->kernel_h == 1U && op->kernel_w == 1U;
    const bool is_there =
        patch->is_whole &&
        (is_one_tap || (patch->x_tap_step == op->group_in_c && (op->kernel_h == 1U || patch->x_row_step == row_bytes)));
    const uint32_t longest = is_there || bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
    int8_t buffer[PIECE_BYTES];
    const int8_t *x = patch->x;
    for (uint32_t end = op->group_out_c, c = 0, count; c < op->out_c; c += count) {
        const bool is_new = c == end || c == 0U;
        if (c == end) {
            end += op->group_out_c;
            x += op->group_in_c;
        }
        count = end - c < FEDMOTE_SUMS ? end - c : FEDMOTE_SUMS;
        int32_t sums[FEDMOTE_SUMS] = {0};
        for (uint32_t from = 0, length; from < bytes; from += length) {
            length = bytes - from < longest ? bytes - from : longest;
            if (!is_there && (is_new || longest < bytes)) {
                gather(buffer, op, patch, x, from, length);
            }
            fedmote_dot(sums, count, is_there ? x : buffer, weights + c * bytes + from, bytes, length);
        }
        fedmote_scale(out + c, scaling, c, sums, count);
    }
}

void fedmote_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    fedmote_conv_rows(&record->conv, weights, memory, first, end, record->conv.group_in_c, convolve);
}
