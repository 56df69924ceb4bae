/* SPDX-License-Identifier: Apache-2.0
 *
 * The int8 operators of the encoder: one readable portable kernel each, bit-exact with TensorFlow Lite Micro.
 *
 * The structs are the records of the plan (protocol/SPEC.md, section 7), word by word: all members have 32 bits, so
 * that fedmote_record_read() fills any of them with one loop. Kernels trust their record: fedmote_package_open() has
 * checked every number in it.
 *
 * All kernels have one form, fedmote_kernel. An operator can be interrupted after any of its units, and its units are
 * done in order, because an output may lie over the part of an input that is done with: while unit u runs, the input
 * that the units from u on need is untouched by the outputs of the units up to u, and all before it may be gone. Only
 * elementwise operators may find element i of an input in the place of element i of the output, or behind it. A variant
 * for one kind of core (variants/) has the same prototypes, replaces the file of the portable kernel in the build and
 * passes the same tests.
 *
 * Shapes are NHWC with batch 1. real = scale * (q - zero_point); the scales are folded into multiplier and shift.
 */
#ifndef FEDMOTE_KERNELS_H
#define FEDMOTE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/* Elements in one unit of the element-wise operators; the last unit may be shorter. */
#define FEDMOTE_BLOCK 64U

/* The words that all records begin with. */
struct fedmote_op {
    uint32_t opcode_words; /* opcode in the low half, length of the record in words in the high half */
    uint32_t units;
    uint32_t unit_macs;
    uint32_t input_offset;  /* in the encoder's arena */
    uint32_t output_offset; /* in the encoder's arena */
};

/* Offsets in section `weights`: the weights, and what turns an int32 sum into an int8 output: for each output channel
 * s32 bias, s32 multiplier (Q31), s32 shift (positive is left). The bias holds the input's zero point: bias -
 * input_zero_point * sum of the channel's weights. So the sums are those of all taps times the inputs as they are,
 * where a tap in the padding has the zero point for its input. */
struct fedmote_channels {
    uint32_t weights;
    uint32_t scaling;
};
#define FEDMOTE_SCALING_BYTES 12U

/* in s8[in_h][in_w][in_c], out s8[out_h][out_w][out_c], in_c = groups * group_in_c, out_c = groups * group_out_c.
 * conv-2d: weights s8[out_c][kernel_h][kernel_w][group_in_c]; depthwise-conv-2d: a group for each input channel,
 * weights s8[kernel_h][kernel_w][out_c]. Unit: one output row. */
struct fedmote_conv {
    struct fedmote_op op;
    struct fedmote_channels channels;
    uint32_t in_h, in_w, in_c, out_h, out_w, out_c;
    uint32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int32_t input_zero_point, output_zero_point, activation_min, activation_max;
    uint32_t groups, group_in_c, group_out_c;
};

/* in s8[in_n], weights s8[out_n][in_n], out s8[out_n]. Unit: one output. */
struct fedmote_dense {
    struct fedmote_op op;
    struct fedmote_channels channels;
    uint32_t in_n, out_n;
    int32_t output_zero_point, activation_min, activation_max;
};

/* The inputs of add and mul: in s8[count], and s8[count2] whose element i % count2 meets element i; the latter in the
 * arena or, where it is constant, in the section `weights`. Unit: one block. */
struct fedmote_operands {
    uint32_t input2_offset, input2_is_constant;
    uint32_t count, count2;
    int32_t input1_zero_point, input2_zero_point, output_zero_point;
};

/* out s8[count] */
struct fedmote_sum {
    struct fedmote_op op;
    struct fedmote_operands operands;
    uint32_t left_shift;
    int32_t multiplier1, shift1, multiplier2, shift2, output_multiplier, output_shift;
    int32_t activation_min, activation_max;
};

/* in s8[in_h][in_w][channels], out s8[out_h][out_w][channels]. Unit: one output row. */
struct fedmote_pool {
    struct fedmote_op op;
    uint32_t in_h, in_w, channels, out_h, out_w;
    uint32_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    int32_t activation_min, activation_max;
};

/* in s8[in_h][in_w][channels], out s8[channels]. Unit: one channel. */
struct fedmote_mean {
    struct fedmote_op op;
    uint32_t in_h, in_w, channels;
    int32_t multiplier, shift, input_zero_point, output_zero_point;
};

/* in s8[in_h][in_w][channels], out s8[out_h][out_w][channels]. Unit: one output row. */
struct fedmote_pad {
    struct fedmote_op op;
    uint32_t in_h, in_w, channels, out_h, out_w, pad_top, pad_left;
    int32_t value;
};

/* out s8[count] */
struct fedmote_product {
    struct fedmote_op op;
    struct fedmote_operands operands;
    int32_t multiplier, shift, activation_min, activation_max;
};

/* Any function of one element: in s8[count], out s8[count], table s8[256] in the section `weights`, for -128 first.
 * Unit: one block. */
struct fedmote_lookup {
    struct fedmote_op op;
    uint32_t table, count;
};

/* in s8[rows][n], out s8[rows][n]; exponentials s32[256] in the section `weights`, Q31: exp(-d * scale) for a
 * difference d from the row's largest element. Unit: one row. */
struct fedmote_softmax_rows {
    struct fedmote_op op;
    uint32_t exponentials, rows, n;
};

/* Four loops around one byte; extents[0] is the outermost, whose turns are the units. */
struct fedmote_copy {
    struct fedmote_op op;
    uint32_t extents[4];
    uint32_t input_start;
    int32_t input_strides[4];
    uint32_t output_start;
    int32_t output_strides[4];
};

/* One record, whichever it is. */
union fedmote_record {
    struct fedmote_op op;
    struct fedmote_conv conv;
    struct fedmote_dense dense;
    struct fedmote_sum sum;
    struct fedmote_pool pool;
    struct fedmote_mean mean;
    struct fedmote_pad pad;
    struct fedmote_product product;
    struct fedmote_lookup lookup;
    struct fedmote_softmax_rows softmax;
    struct fedmote_copy copy;
};

/* Does the units [first, end) of a record. `weights` is the section of that name, `memory` the encoder's arena. */
typedef void fedmote_kernel(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                            uint32_t end);

/* The order of the weights' bytes that the kernels of this build want: one of FEDMOTE_ARRANGEMENT_*. */
extern const uint32_t fedmote_kernel_arrangement;

/* Bytes that the int8 weights of an operator take in that order. */
uint64_t fedmote_conv_weight_bytes(const struct fedmote_conv *op);
uint64_t fedmote_depthwise_weight_bytes(const struct fedmote_conv *op);
uint64_t fedmote_dense_weight_bytes(const struct fedmote_dense *op);

/* Whether those kernels take the scaling of the channels of an operator with int8 weights: s32[count][3]. */
bool fedmote_is_kernel_scaling(const uint8_t *scaling, uint32_t count);

/* Copies the first `words` words of a record in the package. */
void fedmote_record_read(union fedmote_record *record, const uint8_t *bytes, uint32_t words);

static inline uint32_t fedmote_op_code(const struct fedmote_op *op) { return op->opcode_words & 0xFFFFU; }
static inline uint32_t fedmote_op_words(const struct fedmote_op *op) { return op->opcode_words >> 16; }

fedmote_kernel fedmote_conv_2d;
fedmote_kernel fedmote_depthwise_conv_2d;
fedmote_kernel fedmote_fully_connected;
fedmote_kernel fedmote_add;
fedmote_kernel fedmote_average_pool_2d;
fedmote_kernel fedmote_max_pool_2d;
fedmote_kernel fedmote_mean;
fedmote_kernel fedmote_pad;
fedmote_kernel fedmote_table;
fedmote_kernel fedmote_mul;
fedmote_kernel fedmote_softmax;
fedmote_kernel fedmote_strided_copy;
fedmote_kernel fedmote_conv_2d_int4;
fedmote_kernel fedmote_depthwise_conv_2d_int4;
fedmote_kernel fedmote_fully_connected_int4;

#endif
