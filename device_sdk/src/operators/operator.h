/* SPDX-License-Identifier: Apache-2.0
 *
 * What the reader and the encoder know of an operator, and the checks that the records of all operators share. One file
 * of this folder per operator: the check of its record, and its row of constants. Its kernel is a file of src/kernels/
 * or of a variant.
 *
 * Everything that a kernel relies on is checked here, once. Three habits make that provable: sizes are multiplied in 64
 * bits after each factor was held below 2^16; a range is tested as `count <= size - offset` after `offset <= size`; and
 * nothing is read before the section that holds it was found inside the file.
 */
#ifndef FEDMOTE_OPERATOR_H
#define FEDMOTE_OPERATOR_H

#include <stdbool.h>

#include "../kernels/kernels.h"
#include "fedmote/fedmote_operators.h"
#include "fedmote/fedmote_schema.h"

/* Dimensions, strides and lengths of dot products. With int8 factors, sums of 2^16 - 1 products stay below 2^30. */
#define FEDMOTE_DIMENSION_MAX 0xFFFFU
#define FEDMOTE_ALIGNMENT 16U

/* What records are checked against. */
struct fedmote_bounds {
    uint32_t encoder_bytes;
    const uint8_t *weights;
    uint32_t weights_bytes;
};

struct fedmote_operator {
    uint16_t opcode;
    uint16_t words; /* in its record */
    bool (*is_valid)(const union fedmote_record *record, const struct fedmote_bounds *bounds);
    fedmote_kernel *run;
};

/* The operator of a table that has `opcode`, or NULL. */
const struct fedmote_operator *fedmote_operator_find(const struct fedmote_operator *const *operators, uint32_t opcode);

bool fedmote_is_inside(uint32_t offset, uint64_t count, uint32_t size);
bool fedmote_is_dimension(uint32_t value);
bool fedmote_are_dimensions(uint32_t a, uint32_t b, uint32_t c);
bool fedmote_is_int8(int32_t value);
bool fedmote_is_activation(int32_t low, int32_t high);
bool fedmote_is_scaling(int32_t multiplier, int32_t shift);
/* s32[count][3]: bias, multiplier, shift. */
bool fedmote_are_scalings(const uint8_t *scaling, uint32_t count);

/* The pieces of an operator, and that none costs more than it says: the bound of a step rests on it. `macs` is a
 * product of a row in memory and at most 2^16 taps: no overflow in 64 bits. */
bool fedmote_is_unit(const struct fedmote_op *op, uint32_t units, uint64_t macs);
/* The same for elementwise operators. */
bool fedmote_are_blocks(const struct fedmote_op *op, uint32_t count);

/* s8[count] at an offset of the encoder's arena. */
bool fedmote_is_tensor(const struct fedmote_bounds *bounds, uint32_t offset, uint64_t count);
/* s8[a][b][c]; call after fedmote_are_dimensions(a, b, c). */
bool fedmote_is_image(const struct fedmote_bounds *bounds, uint32_t offset, uint32_t a, uint32_t b, uint32_t c);
/* s8[count] or, with count times 4, s32[] at an offset of the section `weights`. */
bool fedmote_is_constant(const struct fedmote_bounds *bounds, uint32_t offset, uint64_t count);
/* The constants of a weighted operator, `weight_bytes` of weights; `is_plain`: its scaling is that of the portable
 * kernels in every build. */
bool fedmote_are_channels(const struct fedmote_bounds *bounds, const struct fedmote_channels *channels,
                          uint64_t weight_bytes, uint32_t out_c, bool is_plain);
/* One axis of a sliding window: all coordinates that it touches fit into int32. */
bool fedmote_is_axis(uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation, uint32_t pad);
/* Shapes, costs, tensors and clamps of a convolution whose weights take `weight_bits` each. */
bool fedmote_is_conv(const struct fedmote_conv *op, const struct fedmote_bounds *bounds, uint32_t weight_bits);
bool fedmote_is_depthwise(const struct fedmote_conv *op, const struct fedmote_bounds *bounds, uint32_t weight_bits);
bool fedmote_is_dense(const struct fedmote_dense *op, const struct fedmote_bounds *bounds, uint32_t weight_bits);
/* The inputs and the output of add and mul. */
bool fedmote_are_operands(const struct fedmote_op *op, const struct fedmote_operands *operands,
                          const struct fedmote_bounds *bounds);
bool fedmote_is_pool(const union fedmote_record *record, const struct fedmote_bounds *bounds);

#endif
