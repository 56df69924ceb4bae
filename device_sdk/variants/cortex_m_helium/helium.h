/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels for cores with Helium (Armv8.1-M vector extension, integer) share.
 *
 * One instruction multiplies 16 inputs with 16 weights and adds all products to one sum. So what has to be saved is the
 * loads: the inputs of up to 7 positions stay in registers, 16 products of each, while the weights of one output
 * channel after the other stream past, and the sums are picked up from memory and put back. The weights are arranged
 * for that: for each group of channels, for each 16 of a sum's products (the last time maybe fewer),
 * s8[group_out_c][16].
 */
#ifndef FEDMOTE_HELIUM_H
#define FEDMOTE_HELIUM_H

#include <stdbool.h>

#include "requantize.h"

#define FEDMOTE_HELIUM_LANES 16U
/* Positions whose sums are worked out together. */
#define FEDMOTE_HELIUM_POSITIONS 7U
/* Channels of one block of sums. */
#define FEDMOTE_HELIUM_CHANNELS 64U

/* How to make outputs of blocks of sums, for all channels of an operator. */
struct fedmote_helium_scaling {
    struct fedmote_scaling scaling;
    bool is_right;  /* all shifts go to the right, by 1 at least */
    bool is_nudged; /* outputs below the zero point occur, so that ties of negative sums count */
};

struct fedmote_helium_scaling fedmote_helium_scaling_of(const struct fedmote_scaling *scaling, uint32_t channels);

/* Outputs of `count` channels, from `first` on, of `positions` positions, `step` bytes from one to the next. */
void fedmote_helium_finish(int8_t *out, uint32_t step, const struct fedmote_helium_scaling *scaling, uint32_t first,
                           const int32_t *sums, uint32_t count, uint32_t positions);

static inline uint32_t fedmote_helium_smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Positions of each block of `width` positions, at most `limit`: as many in each as can be. */
static inline uint32_t fedmote_helium_block_positions(uint32_t width, uint32_t limit) {
    const uint32_t blocks = (width + limit - 1U) / limit;
    return (width + blocks - 1U) / blocks;
}

/* s8[count] from one place to another; they do not overlap. Reads and writes nothing else. */
static inline void fedmote_helium_copy(int8_t *to, const int8_t *from, uint32_t count) {
    __asm volatile("wlstp.8 lr, %2, 2f\n"
                   "1: vldrb.u8 q0, [%1], #16\n"
                   "vstrb.8 q0, [%0], #16\n"
                   "letp lr, 1b\n"
                   "2:"
                   : "+r"(to), "+r"(from)
                   : "r"(count)
                   : "lr", "q0", "memory");
}

static inline void fedmote_helium_fill(int8_t *to, int32_t value, uint32_t count) {
    __asm volatile("vdup.8 q0, %1\n"
                   "wlstp.8 lr, %2, 2f\n"
                   "1: vstrb.8 q0, [%0], #16\n"
                   "letp lr, 1b\n"
                   "2:"
                   : "+r"(to)
                   : "r"(value), "r"(count)
                   : "lr", "q0", "memory");
}

#endif
