/* SPDX-License-Identifier: Apache-2.0
 *
 * 2-D convolution, three positions and two channels at a time: the patches of three positions become columns of widened
 * inputs, padding included (as zero points), and every pair of channels runs over them. The columns take turns: three
 * words of places 0 and 2, three of places 1 and 3.
 *
 * Weights, for each group of channels: [pairs of channels][kernel_h][runs][groups of a run] of eight bytes, whose words
 * hold place 0 of both channels and place 2 of both; 1 and 3. What is missing to whole groups and pairs is zero.
 */
#include "dsp.h"
#include "window.h"

#define POSITIONS 3U
#define GROUP_WORDS (2U * POSITIONS) /* of the columns */
#define GROUP_BYTES 8U               /* of the weights of a pair */
#define PAIR_SUMS (2U * POSITIONS)   /* sums of a pair: three of its first channel, three of its second */
#define PAIR_SCALING (2U * FEDMOTE_SCALING_BYTES)
#define MAX_PAIRS 32U /* whose sums wait on the stack while there is more than one part */

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

/* A group of both channels. r0 columns, r1 weights, r2 to r4 columns' words, r5 and r6 the weights, r7 widened weights,
 * r8 to r10 sums of the first channel, r11, r12, lr of the second. 24 products in 19 instructions of four bytes. */
#define GROUP                                                                                                          \
    "ldmia.w r1!, {r5, r6}\n"                                                                                          \
    "ldmia.w r0!, {r2, r3, r4}\n" HALF("r5") "ldmia.w r0!, {r2, r3, r4}\n" HALF("r6")
#define HALF(w)                                                                                                        \
    "sxtb16 r7, " w "\n"                                                                                               \
    "sxtb16 " w ", " w ", ror #8\n"                                                                                    \
    "smlad r8, r7, r2, r8\n"                                                                                           \
    "smlad r9, r7, r3, r9\n"                                                                                           \
    "smlad r10, r7, r4, r10\n"                                                                                         \
    "smlad r11, " w ", r2, r11\n"                                                                                      \
    "smlad r12, " w ", r3, r12\n"                                                                                      \
    "smlad lr, " w ", r4, lr\n"
#define GROUP_CODE_BYTES 76 /* of the code of one group: 19 instructions */

/* The outputs of one channel. r2 to r4 where they go, r5 zero point, r6 multiplier, r7 factor. */
#define OUTPUT(x, out)                                                                                                 \
    "smmulr " x ", " x ", r6\n"                                                                                        \
    "smmlar " x ", " x ", r7, r5\n"                                                                                    \
    "ssat " x ", #8, " x "\n"                                                                                          \
    "strb " x ", [" out "], #1\n"
#define OUTPUTS(a, b, c) OUTPUT(a, "r2") OUTPUT(b, "r3") OUTPUT(c, "r4")

/* What the assembly works on, in the order of the registers that it is loaded into. */
struct block {
    const void *begin;      /* r0: scaling of the first channel; or, when sums are kept, those of the first pair */
    const uint8_t *weights; /* r1 */
    union {
        int8_t *out[POSITIONS];
        uint32_t gap;   /* when sums are kept: bytes from the weights of a pair to those of the next */
    } to;               /* r2 to r4 */
    int32_t zero_point; /* r5 */
    const uint32_t *columns;
    const void *end; /* r7: behind the scaling, or behind the sums */
    uint32_t groups; /* r8, > 0 */
};

/* All pairs of a block: from columns to outputs (is_keeping 0), or adds the products to the sums (1).
 *
 * On the stack: 0 begin, 4 to 12 out, 16 zero_point, 20 columns, 24 where to enter the four groups of a turn, 28 end of
 * the columns, 32 end, 36 what comes behind the groups. */
__attribute__((naked)) static void run_block(const struct block *block, uint32_t is_keeping) {
    (void)block, (void)is_keeping;
    __asm volatile(
        "push {r4-r11, lr}\n"
        "sub sp, sp, #40\n"
        "mov r10, r1\n"
        "ldm r0, {r0-r8}\n"
        "stm sp, {r0, r2-r6}\n"
        "str r7, [sp, #32]\n"
        "add r9, r8, r8, lsl #1\n"
        "add r9, r6, r9, lsl #3\n"
        "str r9, [sp, #28]\n"
        "sub r8, r8, #1\n"
        "and r8, r8, #3\n" /* groups before the last one in the first turn */
        "mov r9, #" STRING(
            GROUP_CODE_BYTES) "\n"
                              "adr.w r11, 4f\n"
                              "mls r11, r8, r9, r11\n"
                              "orr r11, r11, #1\n" /* Thumb */
                              "str r11, [sp, #24]\n"
                              "cmp r10, #0\n"
                              "bne.w 1f\n"
                              "adr.w r11, 5f\n"
                              "orr r11, r11, #1\n"
                              "str r11, [sp, #36]\n"
                              /* The next pair, to outputs. r0 scaling. */
                              "2: ldr r8, [r0]\n"
                              "ldr r11, [r0, #12]\n"
                              "mov r9, r8\n"
                              "mov r10, r8\n"
                              "mov r12, r11\n"
                              "mov lr, r11\n"
                              "ldr r0, [sp, #20]\n"
                              "ldr pc, [sp, #24]\n"
                              "1: adr.w r11, 6f\n"
                              "orr r11, r11, #1\n"
                              "str r11, [sp, #36]\n"
                              /* The next pair, to sums. r0 sums. */
                              "7: ldm r0, {r8-r12, lr}\n"
                              "ldr r0, [sp, #20]\n"
                              "ldr pc, [sp, #24]\n"
                              ".balign 4\n"
                              "3:\n" GROUP GROUP GROUP "4:\n" GROUP "ldr r7, [sp, #28]\n"
                              "cmp r0, r7\n"
                              "bne.w 3b\n"
                              "ldr pc, [sp, #36]\n"
                              ".balign 4\n"
                              "5: ldm sp, {r0, r2-r5}\n"
                              "ldrd r6, r7, [r0, #4]\n" OUTPUTS("r8", "r9", "r10") "ldrd r6, r7, [r0, #16]\n" OUTPUTS(
                                  "r11", "r12", "lr") "add r0, r0, #24\n"
                                                      "stm sp, {r0, r2-r4}\n"
                                                      "ldr r7, [sp, #32]\n"
                                                      "cmp r0, r7\n"
                                                      "bne.w 2b\n"
                                                      "add sp, sp, #40\n"
                                                      "pop {r4-r11, pc}\n"
                                                      ".balign 4\n"
                                                      "6: ldr r0, [sp]\n"
                                                      "ldr r7, [sp, #4]\n"
                                                      "stmia r0!, {r8-r12, lr}\n"
                                                      "str r0, [sp]\n"
                                                      "add r1, r1, r7\n"
                                                      "ldr r7, [sp, #32]\n"
                                                      "cmp r0, r7\n"
                                                      "bne.w 7b\n"
                                                      "add sp, sp, #40\n"
                                                      "pop {r4-r11, pc}\n");
}

/* From three words of bytes (r4 to r6) to a group of three columns: eor makes x + 128 of x, r11 keeps the doubled
 * bytes of a word that was moved left by one bit (places 0 and 2) or right by seven (places 1 and 3). */
#define WIDEN                                                                                                          \
    "eor r4, r4, #0x80808080\n"                                                                                        \
    "eor r5, r5, #0x80808080\n"                                                                                        \
    "eor r6, r6, #0x80808080\n"                                                                                        \
    "and r7, r11, r4, lsr #7\n"                                                                                        \
    "and r8, r11, r5, lsr #7\n"                                                                                        \
    "and r9, r11, r6, lsr #7\n"                                                                                        \
    "and r4, r11, r4, lsl #1\n"                                                                                        \
    "and r5, r11, r5, lsl #1\n"                                                                                        \
    "and r6, r11, r6, lsl #1\n"                                                                                        \
    "stmia r0!, {r4-r9}\n"

/* Widens `groups` words of each of three patches; returns the end of the columns. groups > 0. r12 end of the columns.
 */
__attribute__((naked)) static uint32_t *widen(uint32_t *columns, const int8_t *x0, const int8_t *x1, const int8_t *x2,
                                              uint32_t groups) {
    (void)columns, (void)x0, (void)x1, (void)x2, (void)groups;
    __asm volatile("ldr r12, [sp]\n"
                   "push {r4-r9, r11, lr}\n"
                   "mov r11, #0x01FE01FE & 0xFFFF\n"
                   "movt r11, #0x01FE\n"
                   "add r12, r12, r12, lsl #1\n"
                   "add r12, r0, r12, lsl #3\n"
                   "1: ldr r4, [r1], #4\n"
                   "ldr r5, [r2], #4\n"
                   "ldr r6, [r3], #4\n" WIDEN "cmp r0, r12\n"
                   "bne 1b\n"
                   "pop {r4-r9, r11, pc}\n");
}

/* The same where the words of the three patches take turns, from the middle of the columns to their end. */
__attribute__((naked)) static void widen_staged(uint32_t *columns, uint32_t *end, const uint32_t *staged) {
    (void)columns, (void)end, (void)staged;
    __asm volatile("push {r4-r9, r11, lr}\n"
                   "mov r11, #0x01FE01FE & 0xFFFF\n"
                   "movt r11, #0x01FE\n"
                   "1: ldmia r2!, {r4-r6}\n" WIDEN "cmp r0, r1\n"
                   "bne 1b\n"
                   "pop {r4-r9, r11, pc}\n");
}

struct job {
    const struct fedmote_conv *op;
    const int8_t *input;
    const uint8_t *weights, *scaling;
    uint32_t run, runs; /* bytes of a run; runs of a kernel row */
    uint32_t run_groups, groups;
    uint32_t row_step, tap_step; /* bytes in the input from a run to that of the next kernel row, to the next run */
    uint32_t pairs;              /* of a group's channels, the last may have one channel */
    uint32_t padding;            /* four zero points */
    bool is_plain;               /* sums that are not doubled */
    bool is_direct;              /* runs are whole words, which may be read where they lie */
    bool is_in_parts;            /* columns do not fit as a whole */
    bool is_clamped;
};

/* A position of the output. */
struct position {
    int32_t x; /* where its first tap is in the input, in front of it in the leading padding */
    int8_t *out;
    bool is_whole; /* nothing of it lies in the padding; if not: */
    struct fedmote_window rows, taps;
};

/* Four bytes of a run from `place` on, of which [low, high) are in the input, but not all of these four. */
static uint32_t edge_word(const int8_t *x, uint32_t place, uint32_t low, uint32_t high, uint32_t padding) {
    if (high <= place || low >= place + 4U) {
        return padding;
    }
    if (low <= place && high - low >= 4U) { /* its end */
        const uint32_t bits = 8U * (high - place);
        return fedmote_dsp_word(x + high - 4U) >> (32U - bits) | padding << bits;
    }
    uint32_t word = 0;
    for (uint32_t i = place + 4U; i-- > place;) {
        word = word << 8 | (i - low < high - low ? (uint8_t)x[i] : padding & 0xFFU);
    }
    return word;
}

/* The groups [from, to) of a run at x whose bytes [low, high) are in the input; every third word. */
static inline uint32_t *stage_run(uint32_t *staged, const int8_t *x, uint32_t from, uint32_t to, uint32_t low,
                                  uint32_t high, uint32_t padding) {
    uint32_t i = from;
    for (; i < to && 4U * i < low; i++, staged += POSITIONS) {
        *staged = edge_word(x, 4U * i, low, high, padding);
    }
    for (const uint32_t stop = high / 4U < to ? high / 4U : to; i < stop; i++, staged += POSITIONS) {
        *staged = fedmote_dsp_word(x + 4U * i);
    }
    for (; i < to; i++, staged += POSITIONS) {
        *staged = edge_word(x, 4U * i, low, high, padding);
    }
    return staged;
}

/* The groups [begin, end) of the patch at a position; `shift`: of the channels' group in the input. */
static void stage(uint32_t *staged, const struct job *job, const struct position *at, uint32_t shift, uint32_t begin,
                  uint32_t end) {
    const uint32_t tap_bytes = job->op->group_in_c;
    uint32_t place = 0;
    for (uint32_t row = 0; row < job->op->kernel_h && place < end; row++) {
        const int8_t *x = job->input + (at->x + (int32_t)(shift + row * job->row_step));
        const bool is_row = at->is_whole || row - at->rows.first < at->rows.end - at->rows.first;
        for (uint32_t run = 0; run < job->runs; run++, x += job->tap_step, place += job->run_groups) {
            uint32_t low = 0, high = is_row ? job->run : 0U;
            if (is_row && !at->is_whole) {
                if (job->runs == 1U) {
                    low = at->taps.first * tap_bytes;
                    high = at->taps.end * tap_bytes;
                } else if (run - at->taps.first >= at->taps.end - at->taps.first) {
                    high = 0;
                }
            }
            const uint32_t from = place < begin ? begin : place;
            const uint32_t to = place + job->run_groups < end ? place + job->run_groups : end;
            if (from < to) {
                staged = stage_run(staged, x, from - place, to - place, low, high, job->padding);
            }
        }
    }
}

/* The same for a patch that lies in the input altogether, in one run per row of four bytes at least, all of it. */
static void stage_whole(uint32_t *staged, const struct job *job, const int8_t *x) {
    const uint32_t rest = job->run % 4U, last = job->run - 4U, unused = 32U - 8U * rest;
    for (uint32_t row = job->op->kernel_h; row > 0U; row--, x += job->row_step) {
        const int8_t *from = x, *end = x + (job->run - rest);
        for (; from != end; from += 4, staged += POSITIONS) {
            *staged = fedmote_dsp_word(from);
        }
        if (rest != 0U) {
            *staged = fedmote_dsp_word(x + last) >> unused; /* what follows meets weights of zero */
            staged += POSITIONS;
        }
    }
}

/* The groups [begin, end) of three patches that lie in the input altogether, in whole words. */
static void gather_direct(uint32_t *columns, const struct job *job, const struct position *at, uint32_t shift,
                          uint32_t begin, uint32_t end) {
    uint32_t place = 0;
    for (uint32_t row = 0; row < job->op->kernel_h && place < end; row++) {
        const int8_t *x = job->input + shift + row * job->row_step;
        for (uint32_t run = 0; run < job->runs; run++, x += job->tap_step, place += job->run_groups) {
            const uint32_t from = place < begin ? begin : place;
            const uint32_t to = place + job->run_groups < end ? place + job->run_groups : end;
            if (from < to) {
                const int8_t *first = x + 4U * (from - place);
                columns = widen(columns, first + at[0].x, first + at[1].x, first + at[2].x, to - from);
            }
        }
    }
}

static void gather(uint32_t *columns, const struct job *job, const struct position *at, uint32_t shift, uint32_t begin,
                   uint32_t end) {
    const uint32_t groups = end - begin;
    if (job->is_direct && at[0].is_whole && at[1].is_whole && at[2].is_whole) {
        gather_direct(columns, job, at, shift, begin, end);
    } else {
        const bool is_simple = job->runs == 1U && job->run >= 4U && groups == job->groups;
        uint32_t *staged = columns + POSITIONS * groups;
        for (uint32_t p = 0; p < POSITIONS; p++) {
            if (is_simple && at[p].is_whole) {
                stage_whole(staged + p, job, job->input + (at[p].x + (int32_t)shift));
            } else {
                stage(staged + p, job, &at[p], shift, begin, end);
            }
        }
        widen_staged(columns, columns + GROUP_WORDS * groups, staged);
    }
    if (job->is_plain) {
        fedmote_dsp_halve(columns, GROUP_WORDS * groups);
    }
}

/* A pair whose second channel goes nowhere; rare, so that its stack is not that of every turn. */
__attribute__((noinline)) static void run_single(struct block block, const struct position *at, uint32_t channel) {
    uint32_t last[PAIR_SCALING / 4U] = {0};
    int8_t out[POSITIONS][2];
    memcpy(last, block.begin, FEDMOTE_SCALING_BYTES);
    block.begin = last;
    block.end = last + PAIR_SCALING / 4U;
    for (uint32_t p = 0; p < POSITIONS; p++) {
        block.to.out[p] = out[p];
    }
    run_block(&block, 0U);
    for (uint32_t p = 0; p < POSITIONS; p++) {
        at[p].out[channel] = out[p][0];
    }
}

/* All channels of a group, whose columns fit as a whole. `first` is its first channel. */
static void convolve_whole(uint32_t *columns, const struct job *job, const struct position *at, uint32_t shift,
                           uint32_t first, const uint8_t *weights) {
    const uint32_t count = job->op->group_out_c;
    const uint8_t *scaling = job->scaling + FEDMOTE_SCALING_BYTES * first;
    struct block block = {scaling,
                          weights,
                          {.out = {at[0].out + first, at[1].out + first, at[2].out + first}},
                          job->op->output_zero_point,
                          columns,
                          scaling + PAIR_SCALING * (count / 2U),
                          job->groups};
    gather(columns, job, at, shift, 0U, job->groups);
    if (count >= 2U) {
        run_block(&block, 0U);
    }
    if (count % 2U != 0U) {
        block.begin = block.end;
        block.weights += count / 2U * job->groups * GROUP_BYTES;
        run_single(block, at, first + count - 1U);
    }
}

/* The channels [first, end) of a group, whose first pair's weights are given: part by part of the patches, with sums
 * that wait in memory. */
static void convolve_parts(uint32_t *memory, const struct job *job, const struct position *at, uint32_t shift,
                           uint32_t first, uint32_t end, const uint8_t *weights) {
    const uint32_t pairs = (end - first + 1U) / 2U;
    int32_t *sums = (int32_t *)memory;
    uint32_t *columns = memory + PAIR_SUMS * pairs;
    const uint32_t capacity = (FEDMOTE_DSP_WORDS - PAIR_SUMS * pairs) / GROUP_WORDS;
    const uint8_t *scaling = job->scaling + FEDMOTE_SCALING_BYTES * first;
    for (uint32_t c = 0; c < 2U * pairs; c++) {
        const int32_t bias = first + c < end ? fedmote_load_s32(scaling + FEDMOTE_SCALING_BYTES * c) : 0;
        for (uint32_t p = 0; p < POSITIONS; p++) {
            sums[POSITIONS * c + p] = bias;
        }
    }
    for (uint32_t begin = 0; begin < job->groups; begin += capacity) {
        const uint32_t rest = job->groups - begin;
        const uint32_t groups = rest < capacity ? rest : capacity;
        gather(columns, job, at, shift, begin, begin + groups);
        const struct block block = {sums,
                                    weights + GROUP_BYTES * begin,
                                    {.gap = GROUP_BYTES * (job->groups - groups)},
                                    0,
                                    columns,
                                    sums + PAIR_SUMS * pairs,
                                    groups};
        run_block(&block, 1U);
    }
    for (uint32_t c = first; c < end; c++, scaling += FEDMOTE_SCALING_BYTES) {
        for (uint32_t p = 0; p < POSITIONS; p++) {
            at[p].out[c] = fedmote_dsp_output(*sums++, scaling, job->is_plain, job->op->output_zero_point);
        }
    }
}

/* The channels of a group. */
static void convolve_group_in_parts(uint32_t *memory, const struct job *job, const struct position *at, uint32_t shift,
                                    uint32_t first, const uint8_t *weights) {
    for (uint32_t c = 0; c < job->op->group_out_c; c += 2U * MAX_PAIRS) {
        const uint32_t rest = job->op->group_out_c - c;
        const uint32_t count = rest < 2U * MAX_PAIRS ? rest : 2U * MAX_PAIRS;
        convolve_parts(memory, job, at, shift, first + c, first + c + count, weights);
        weights += GROUP_BYTES * job->groups * MAX_PAIRS;
    }
}

static void convolve(uint32_t *memory, const struct job *job, const struct position *at) {
    const struct fedmote_conv *op = job->op;
    const uint8_t *weights = job->weights;
    for (uint32_t first = 0, shift = 0; first < op->out_c; first += op->group_out_c, shift += op->group_in_c) {
        if (job->is_in_parts) {
            convolve_group_in_parts(memory, job, at, shift, first, weights);
        } else {
            convolve_whole(memory, job, at, shift, first, weights);
        }
        weights += GROUP_BYTES * job->groups * job->pairs;
    }
    if (job->is_clamped) {
        for (uint32_t p = 0; p < POSITIONS; p++) {
            fedmote_dsp_clamp(at[p].out, op->out_c, op->activation_min, op->activation_max);
        }
    }
}

static struct job job_of(const struct fedmote_conv *op, const uint8_t *weights, const int8_t *memory) {
    const uint32_t runs = fedmote_dsp_runs(op), run_groups = fedmote_dsp_run_groups(op);
    const uint32_t run = op->kernel_w / runs * op->group_in_c, groups = op->kernel_h * runs * run_groups;
    const uint8_t *scaling = weights + op->channels.scaling;
    const bool is_plain = fedmote_dsp_is_plain(scaling);
    const struct job job = {op,
                            memory + op->op.input_offset,
                            weights + op->channels.weights,
                            scaling,
                            run,
                            runs,
                            run_groups,
                            groups,
                            op->dilation_h * op->in_w * op->in_c,
                            op->dilation_w * op->in_c,
                            (op->group_out_c + 1U) / 2U,
                            (uint32_t)(uint8_t)op->input_zero_point * 0x01010101U,
                            is_plain,
                            FEDMOTE_DSP_IS_UNALIGNED ? run % 4U == 0U
                                                     : op->in_c % 4U == 0U && op->group_in_c % 4U == 0U,
                            is_plain || groups > FEDMOTE_DSP_WORDS / GROUP_WORDS,
                            op->activation_min != INT8_MIN || op->activation_max != INT8_MAX};
    return job;
}

static struct position position_at(const struct fedmote_conv *op, const struct fedmote_window *rows, uint32_t x,
                                   int8_t *out) {
    struct position at;
    const int32_t column = (int32_t)(x * op->stride_w) - (int32_t)op->pad_left;
    const int32_t last = column + (int32_t)((op->kernel_w - 1U) * op->dilation_w);
    at.x = (rows->origin * (int32_t)op->in_w + column) * (int32_t)op->in_c;
    at.out = out;
    at.is_whole = rows->end - rows->first == op->kernel_h && column >= 0 && last < (int32_t)op->in_w;
    if (!at.is_whole) {
        at.rows = *rows;
        at.taps = fedmote_window_at(x, op->stride_w, op->pad_left, op->kernel_w, op->dilation_w, op->in_w);
    }
    return at;
}

/* Positions of several rows may share a turn, as nothing is written before all three patches have been read; unless
 * they are read again after that. */
void fedmote_conv_2d(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                     uint32_t end) {
    const struct fedmote_conv *op = &record->conv;
    uint32_t words[FEDMOTE_DSP_WORDS];
    const struct job job = job_of(op, weights, memory);
    const bool is_read_again = op->groups > 1U || (job.is_in_parts && job.pairs > MAX_PAIRS);
    struct position at[POSITIONS];
    uint32_t filled = 0;
    int8_t *output = memory + op->op.output_offset + first * op->out_w * op->out_c;
    for (uint32_t y = first; y < end; y++) {
        const struct fedmote_window rows =
            fedmote_window_at(y, op->stride_h, op->pad_top, op->kernel_h, op->dilation_h, op->in_h);
        for (uint32_t x = 0; x < op->out_w; x++, output += op->out_c) {
            at[filled] = position_at(op, &rows, x, output);
            filled++;
            if (x + 1U == op->out_w && (is_read_again || y + 1U == end)) {
                for (; filled < POSITIONS; filled++) { /* a position without company is done more than once */
                    at[filled] = at[filled - 1U];
                }
            }
            if (filled == POSITIONS) {
                convolve(words, &job, at);
                filled = 0;
            }
        }
    }
}
