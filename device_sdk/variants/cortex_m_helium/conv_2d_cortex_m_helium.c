/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution, up to seven positions at a time: helium.h. Where the taps of a kernel row are a whole number of
 * chunks the inputs are read where they lie, row by row of the kernel, or from a copy of the input row with its
 * padding. Otherwise the patch of each position becomes a column first.
 */
#include <stddef.h>

#include "helium.h"
#include "window.h"

/* Sums of products of the inputs of some positions with the weights of some channels. */
struct dot {
    const int8_t *x;       /* of the first position */
    uint32_t x_step;       /* bytes to the next position's */
    const int8_t *weights; /* of the first channel and the first 16 products */
    uint32_t skip;         /* bytes from the end of a chunk's weights of these channels to the next chunk's */
    int32_t *sums;         /* s32[channels][positions] */
    uint32_t channels;     /* at least 1 */
    uint32_t chunks, tail; /* products: 16 * chunks + tail, tail < 16 */
    uint32_t is_first;     /* the sums begin here; otherwise they go on */
    const int8_t *tail_weights;
};

/* Sums in r0, r2, ... r12 (the instruction takes even registers only), inputs in q1 to q7, weights in q0. */
#define EACH_1(DO) DO("r0", "q1")
#define EACH_2(DO) EACH_1(DO) DO("r2", "q2")
#define EACH_3(DO) EACH_2(DO) DO("r4", "q3")
#define EACH_4(DO) EACH_3(DO) DO("r6", "q4")
#define EACH_5(DO) EACH_4(DO) DO("r8", "q5")
#define EACH_6(DO) EACH_5(DO) DO("r10", "q6")
#define EACH_7(DO) EACH_6(DO) DO("r12", "q7")
#define SUMS_1 "{r0}"
#define SUMS_2 "{r0, r2}"
#define SUMS_3 "{r0, r2, r4}"
#define SUMS_4 "{r0, r2, r4, r6}"
#define SUMS_5 "{r0, r2, r4, r6, r8}"
#define SUMS_6 "{r0, r2, r4, r6, r8, r10}"
#define SUMS_7 "{r0, r2, r4, r6, r8, r10, r12}"

#define LOAD(sum, x)                                                                                                   \
    "vldrb.u8 " x ", [r2]\n"                                                                                           \
    "add r2, r2, r0\n"
#define LOAD_TAIL(sum, x)                                                                                              \
    "vpst\n"                                                                                                           \
    "vldrbt.u8 " x ", [r2]\n"                                                                                          \
    "add r2, r2, r0\n"
#define BEGIN(sum, x) "vmladav.s8 " sum ", q0, " x "\n"
#define ADD(sum, x) "vmladava.s8 " sum ", q0, " x "\n"

#define WEIGHTS "vldrb.u8 q0, [r1], #16\n"
#define WEIGHTS_TAIL                                                                                                   \
    "vpst\n"                                                                                                           \
    "vldrbt.u8 q0, [r1]\n"                                                                                             \
    "add r1, r1, r9\n"
/* A channel: its weights times the inputs of all positions. r3 goes over the sums. */
#define BEGIN_CHANNEL(n, weights) weights EACH_##n(BEGIN) "stm r3!, " SUMS_##n "\n"
#define ADD_CHANNEL(n, weights) "ldm r3, " SUMS_##n "\n" weights EACH_##n(ADD) "stm r3!, " SUMS_##n "\n"
/* All r0 channels, two in a turn of the loop, which is entered in its middle where their number is odd. */
#define CHANNELS(channel, again, middle)                                                                               \
    "add r2, r0, #1\n"                                                                                                 \
    "lsr r2, r2, #1\n"                                                                                                 \
    "dls lr, r2\n"                                                                                                     \
    "tst r0, #1\n"                                                                                                     \
    "bne " middle "f\n" again ":\n" channel middle ":\n" channel "le lr, " again "b\n"
#define TAIL_CHANNELS(channel, again) "dls lr, r0\n" again ":\n" channel "le lr, " again "b\n"
#define NEXT_CHANNELS                                                                                                  \
    "ldr r3, [r7, #16]\n"                                                                                              \
    "ldr r0, [r7, #20]\n"                                                                                              \
    "cmp r11, #0\n"

/* r1 weights, r5 inputs, r7 the struct, r9 whole chunks to come and then the length of the tail, r11 whether sums begin
 * here. */
#define DOT(n)                                                                                                         \
    __attribute__((naked)) static void dot_##n(const struct dot *dot) {                                                \
        (void)dot;                                                                                                     \
        __asm volatile("push {r4-r11, lr}\n"                                                                           \
                       "vpush {d8-d15}\n"                                                                              \
                       "mov r7, r0\n"                                                                                  \
                       "ldr r5, [r7]\n"                                                                                \
                       "ldr r1, [r7, #8]\n"                                                                            \
                       "ldr r9, [r7, #24]\n"                                                                           \
                       "ldr r11, [r7, #32]\n"                                                                          \
                       "b 5f\n"                                                                                        \
                       "1: ldr r0, [r7, #4]\n"                                                                         \
                       "mov r2, r5\n" EACH_##n(LOAD) "add r5, r5, #16\n" NEXT_CHANNELS "beq 3f\n"                      \
                                                     "mov r11, #0\n" CHANNELS(                                         \
                                                         BEGIN_CHANNEL(n, WEIGHTS), "2",                               \
                                                         "7") "b 4f\n"                                                 \
                                                              "3:\n" CHANNELS(ADD_CHANNEL(n, WEIGHTS), "2",            \
                                                                              "7") "4: ldr r0, [r7, #12]\n"            \
                                                                                   "add r1, r1, r0\n"                  \
                                                                                   "5: subs r9, r9, #1\n"              \
                                                                                   "bhs 1b\n"                          \
                                                                                   "ldr r9, [r7, #28]\n"               \
                                                                                   "cmp r9, #0\n"                      \
                                                                                   "beq 9f\n"                          \
                                                                                   "ldr r1, [r7, #36]\n"               \
                                                                                   "vctp.8 r9\n"                       \
                                                                                   "ldr r0, [r7, #4]\n"                \
                                                                                   "mov r2, r5\n" EACH_##n(LOAD_TAIL)  \
                                                                                       NEXT_CHANNELS                   \
                       "beq 8f\n" TAIL_CHANNELS(BEGIN_CHANNEL(n, WEIGHTS_TAIL),                                        \
                                                "2") "b 9f\n"                                                          \
                                                     "8:\n" TAIL_CHANNELS(ADD_CHANNEL(n, WEIGHTS_TAIL),                \
                                                                          "2") "9: vpop {d8-d15}\n"                    \
                                                                               "pop {r4-r11, pc}\n");                  \
    }

DOT(1)
DOT(2)
DOT(3)
DOT(4)
DOT(5)
DOT(6)
DOT(7)

typedef char offsets_in_the_assembly[offsetof(struct dot, x_step) == 4U && offsetof(struct dot, weights) == 8U &&
                                             offsetof(struct dot, skip) == 12U && offsetof(struct dot, sums) == 16U &&
                                             offsetof(struct dot, channels) == 20U &&
                                             offsetof(struct dot, chunks) == 24U && offsetof(struct dot, tail) == 28U &&
                                             offsetof(struct dot, is_first) == 32U &&
                                             offsetof(struct dot, tail_weights) == 36U
                                         ? 1
                                         : -1];

static void add_products(const struct dot *dot, uint32_t positions) {
    static void (*const functions[])(const struct dot *) = {dot_1, dot_2, dot_3, dot_4, dot_5, dot_6, dot_7};
    functions[positions - 1U](dot);
}

#define COLUMN_BYTES 288U /* of a patch, at once; a multiple of the lanes */
#define ROW_BYTES (FEDMOTE_HELIUM_POSITIONS * COLUMN_BYTES)
#define OFFSETS_MAX 0xFFFFU

/* Positions from y, x on, neighbours in a row; those of columns may go on in the next row. */
struct block {
    uint32_t y, x, positions;
};

struct job {
    const struct fedmote_conv *op;
    const int8_t *input, *weights;
    int8_t *output;
    struct fedmote_helium_scaling scaling;
    uint32_t products; /* of one sum */
    int8_t *scratch;   /* s8[ROW_BYTES] */
    int32_t *sums;     /* s32[FEDMOTE_HELIUM_CHANNELS][FEDMOTE_HELIUM_POSITIONS] */
    uint16_t *offsets; /* of the inputs of a whole patch from its first, u16[COLUMN_BYTES]; columns only */
    bool has_offsets;
};

static void finish(const struct job *job, const struct block *block, uint32_t first, uint32_t count) {
    const struct fedmote_conv *op = job->op;
    int8_t *out = job->output + (block->y * op->out_w + block->x) * op->out_c + first;
    fedmote_helium_finish(out, op->out_c, &job->scaling, first, job->sums, count, block->positions);
}

/* The inputs that the positions of a block see in one row of the kernel, and how they lie: in the input itself, or in
 * the scratch where some are padding. */
static const int8_t *row_of(const struct job *job, const struct block *block, uint32_t ky) {
    const struct fedmote_conv *op = job->op;
    const int32_t y = (int32_t)(block->y * op->stride_h + ky * op->dilation_h) - (int32_t)op->pad_top;
    const int32_t left = (int32_t)(block->x * op->stride_w) - (int32_t)op->pad_left;
    const int32_t right = left + (int32_t)((block->positions - 1U) * op->stride_w + op->kernel_w);
    const int32_t width = (int32_t)op->in_w;
    const bool is_row = y >= 0 && y < (int32_t)op->in_h;
    const int8_t *row = is_row ? job->input + (uint32_t)y * op->in_w * op->in_c : job->input;
    if (is_row && left >= 0 && right <= width) {
        return row + (uint32_t)left * op->in_c;
    }
    const int32_t from = left < 0 ? 0 : left, to = right > width ? width : right;
    fedmote_helium_fill(job->scratch, op->input_zero_point, (uint32_t)(right - left) * op->in_c);
    if (is_row && from < to) {
        fedmote_helium_copy(job->scratch + (uint32_t)(from - left) * op->in_c, row + (uint32_t)from * op->in_c,
                            (uint32_t)(to - from) * op->in_c);
    }
    return job->scratch;
}

/* A block, kernel row by kernel row. */
static void convolve_rows(const struct job *job, const struct block *block) {
    const struct fedmote_conv *op = job->op;
    const uint32_t row_products = op->kernel_w * op->in_c;
    for (uint32_t c = 0; c < op->out_c; c += FEDMOTE_HELIUM_CHANNELS) {
        struct dot dot;
        dot.x_step = op->stride_w * op->in_c;
        dot.channels = fedmote_helium_smaller(op->out_c - c, FEDMOTE_HELIUM_CHANNELS);
        dot.skip = (op->out_c - dot.channels) * FEDMOTE_HELIUM_LANES;
        dot.sums = job->sums;
        dot.chunks = row_products / FEDMOTE_HELIUM_LANES;
        dot.tail = row_products % FEDMOTE_HELIUM_LANES;
        for (uint32_t ky = 0; ky < op->kernel_h; ky++) {
            dot.x = row_of(job, block, ky);
            dot.is_first = ky == 0U;
            dot.weights = job->weights + ky * row_products * op->out_c + c * FEDMOTE_HELIUM_LANES;
            dot.tail_weights = job->weights + dot.chunks * FEDMOTE_HELIUM_LANES * op->out_c + c * dot.tail;
            add_products(&dot, block->positions);
        }
        finish(job, block, c, dot.channels);
    }
}

/* Inputs of a whole patch that lies in the image. */
static void gather_whole(int8_t *column, const struct job *job, const int8_t *first) {
    const uint16_t *offsets = job->offsets;
    __asm volatile("dlstp.16 lr, %3\n"
                   "1: vldrh.u16 q1, [%1], #16\n"
                   "vldrb.u16 q0, [%2, q1]\n"
                   "vstrb.16 q0, [%0], #8\n"
                   "letp lr, 1b\n"
                   : "+l"(column), "+r"(offsets)
                   : "r"(first), "r"(job->products)
                   : "lr", "q0", "q1", "memory");
}

/* The part [begin, end) of any patch: its taps in the image over a ground of padding. */
static void gather_part(int8_t *column, const struct job *job, const struct fedmote_patch *patch, uint32_t begin,
                        uint32_t end) {
    const struct fedmote_conv *op = job->op;
    if (!patch->is_whole) {
        fedmote_helium_fill(column, op->input_zero_point, end - begin);
    }
    const bool is_run = patch->x_tap_step == op->group_in_c;
    const uint32_t runs = is_run ? 1U : patch->taps;
    const uint32_t length = is_run ? patch->taps * op->group_in_c : op->group_in_c;
    for (uint32_t row = 0; row < patch->rows; row++) {
        for (uint32_t run = 0; run < runs; run++) {
            const int8_t *x = patch->x + row * patch->x_row_step + run * patch->x_tap_step;
            const uint32_t place = patch->w + row * patch->w_row_step + run * patch->w_tap_step;
            const uint32_t from = place < begin ? begin : place;
            const uint32_t to = fedmote_helium_smaller(place + length, end);
            if (from < to) {
                fedmote_helium_copy(column + (from - begin), x + (from - place), to - from);
            }
        }
    }
}

/* The columns of a block for the products [begin, end) of one group, whose channels begin at `input`. */
static void gather(const struct job *job, const struct block *block, const int8_t *input, uint32_t begin, uint32_t end,
                   uint32_t step) {
    const struct fedmote_conv *op = job->op;
    uint32_t y = block->y, x = block->x;
    int8_t *column = job->scratch;
    for (uint32_t i = 0; i < block->positions; i++, column += step) {
        const int32_t top = (int32_t)(y * op->stride_h) - (int32_t)op->pad_top;
        const int32_t left = (int32_t)(x * op->stride_w) - (int32_t)op->pad_left;
        if (job->has_offsets && top >= 0 && left >= 0 &&
            (uint32_t)top + (op->kernel_h - 1U) * op->dilation_h < op->in_h &&
            (uint32_t)left + (op->kernel_w - 1U) * op->dilation_w < op->in_w) {
            gather_whole(column, job, input + ((uint32_t)top * op->in_w + (uint32_t)left) * op->in_c);
        } else {
            const struct fedmote_window rows =
                fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
            const struct fedmote_window columns =
                fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
            const struct fedmote_patch patch = fedmote_patch_at(op, input, op->group_in_c, &rows, &columns);
            gather_part(column, job, &patch, begin, end);
        }
        x++;
        if (x == op->out_w) {
            x = 0;
            y++;
        }
    }
}

/* A block, group by group, in columns. */
static void convolve_columns(const struct job *job, const struct block *block) {
    const struct fedmote_conv *op = job->op;
    const bool is_one_part = job->products <= COLUMN_BYTES;
    struct dot dot;
    dot.x = job->scratch;
    dot.sums = job->sums;
    for (uint32_t group = 0; group < op->groups; group++) {
        const int8_t *input = job->input + group * op->group_in_c;
        const int8_t *weights = job->weights + group * op->group_out_c * job->products;
        for (uint32_t c = 0; c < op->group_out_c; c += FEDMOTE_HELIUM_CHANNELS) {
            dot.channels = fedmote_helium_smaller(op->group_out_c - c, FEDMOTE_HELIUM_CHANNELS);
            dot.skip = (op->group_out_c - dot.channels) * FEDMOTE_HELIUM_LANES;
            for (uint32_t begin = 0; begin < job->products; begin += COLUMN_BYTES) {
                const uint32_t count = fedmote_helium_smaller(job->products - begin, COLUMN_BYTES);
                dot.x_step = (count + FEDMOTE_HELIUM_LANES - 1U) / FEDMOTE_HELIUM_LANES * FEDMOTE_HELIUM_LANES;
                if (c == 0U || !is_one_part) {
                    gather(job, block, input, begin, begin + count, dot.x_step);
                }
                dot.is_first = begin == 0U;
                dot.chunks = count / FEDMOTE_HELIUM_LANES;
                dot.tail = count % FEDMOTE_HELIUM_LANES;
                dot.weights = weights + begin * op->group_out_c + c * FEDMOTE_HELIUM_LANES;
                dot.tail_weights = weights + (begin + count - dot.tail) * op->group_out_c + c * dot.tail;
                add_products(&dot, block->positions);
            }
            finish(job, block, group * op->group_out_c + c, dot.channels);
        }
    }
}

/* Whether all taps of all positions lie in the image. */
static bool is_inside(const struct fedmote_conv *op) {
    return op->pad_top == 0U && op->pad_left == 0U &&
           (op->out_h - 1U) * op->stride_h + (op->kernel_h - 1U) * op->dilation_h < op->in_h &&
           (op->out_w - 1U) * op->stride_w + (op->kernel_w - 1U) * op->dilation_w < op->in_w;
}

/* Positions of a block that is read row by row, or 0 where that does not go. */
static uint32_t positions_of_rows(const struct fedmote_conv *op) {
    const uint32_t row_products = op->kernel_w * op->in_c;
    if (op->groups > 1U || (op->kernel_w > 1U && op->dilation_w > 1U) ||
        (op->kernel_h > 1U && row_products % FEDMOTE_HELIUM_LANES != 0U)) {
        return 0U;
    }
    if (is_inside(op)) {
        return FEDMOTE_HELIUM_POSITIONS;
    }
    uint32_t positions = FEDMOTE_HELIUM_POSITIONS;
    while (positions > 0U && ((uint64_t)(positions - 1U) * op->stride_w + op->kernel_w) * op->in_c > ROW_BYTES) {
        positions--;
    }
    return positions;
}

static void find_offsets(struct job *job) {
    const struct fedmote_conv *op = job->op;
    const uint32_t row = op->dilation_h * op->in_w * op->in_c, tap = op->dilation_w * op->in_c;
    const uint64_t last = (uint64_t)(op->kernel_h - 1U) * op->dilation_h * op->in_w * op->in_c +
                          (uint64_t)(op->kernel_w - 1U) * tap + op->group_in_c - 1U;
    job->has_offsets = job->products <= COLUMN_BYTES && last <= OFFSETS_MAX;
    uint16_t *offset = job->offsets;
    for (uint32_t ky = 0; ky < op->kernel_h && job->has_offsets; ky++) {
        for (uint32_t kx = 0; kx < op->kernel_w; kx++) {
            for (uint32_t c = 0; c < op->group_in_c; c++) {
                *offset++ = (uint16_t)(ky * row + kx * tap + c);
            }
        }
    }
}

/* Rows [first, end) in blocks that do not go beyond a row. */
static void convolve(const struct job *job, uint32_t first, uint32_t end, uint32_t limit,
                     void (*convolve_block)(const struct job *, const struct block *)) {
    const uint32_t width = job->op->out_w, positions = fedmote_helium_block_positions(width, limit);
    for (uint32_t y = first; y < end; y++) {
        for (uint32_t x = 0; x < width; x += positions) {
            const struct block block = {y, x, fedmote_helium_smaller(positions, width - x)};
            convolve_block(job, &block);
        }
    }
}

void fedmote_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    struct fedmote_conv op = record->conv;
    int8_t scratch[ROW_BYTES];
    int32_t sums[FEDMOTE_HELIUM_CHANNELS * FEDMOTE_HELIUM_POSITIONS];
    uint16_t offsets[COLUMN_BYTES];
    const struct fedmote_scaling scaling =
        fedmote_scaling_of(&op.channels, weights, op.output_zero_point, op.activation_min, op.activation_max);
    struct job job = {&op,
                      memory + op.op.input_offset,
                      (const int8_t *)(weights + op.channels.weights),
                      memory + op.op.output_offset,
                      fedmote_helium_scaling_of(&scaling, op.out_c),
                      op.kernel_h * op.kernel_w * op.group_in_c,
                      scratch,
                      sums,
                      offsets,
                      false};
    const uint32_t row_positions = positions_of_rows(&op);
    if (row_positions > 0U) {
        /* All inputs of a block are read before its first output is written: it may go on in the next row. */
        if (op.kernel_h == 1U && op.kernel_w == 1U && op.stride_h == 1U && op.stride_w == 1U && is_inside(&op) &&
            op.in_w == op.out_w && op.out_c <= FEDMOTE_HELIUM_CHANNELS) {
            job.input += first * op.in_w * op.in_c;
            job.output += first * op.out_w * op.out_c;
            op.in_w *= end - first;
            op.out_w = op.in_w;
            first = 0U;
            end = 1U;
        }
        convolve(&job, first, end, row_positions, convolve_rows);
        return;
    }
    find_offsets(&job);
    if (op.groups > 1U || job.products > COLUMN_BYTES) {
        convolve(&job, first, end, FEDMOTE_HELIUM_POSITIONS, convolve_columns);
        return;
    }
    const uint32_t stop = end * op.out_w;
    const uint32_t positions = fedmote_helium_block_positions(stop - first * op.out_w, FEDMOTE_HELIUM_POSITIONS);
    struct block block = {first, 0U, 0U};
    for (uint32_t at = first * op.out_w; at < stop; at += positions) {
        block.positions = fedmote_helium_smaller(positions, stop - at);
        convolve_columns(&job, &block);
        for (block.x += block.positions; block.x >= op.out_w; block.x -= op.out_w) {
            block.y++;
        }
    }
}
