/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

#include <stddef.h>

#include "../little_endian.h"

const struct fedmote_operator *fedmote_operator_find(const struct fedmote_operator *const *operators, uint32_t opcode) {
    for (; *operators != NULL; operators++) {
        if ((*operators)->opcode == opcode) {
            return *operators;
        }
    }
    return NULL;
}

bool fedmote_is_inside(uint32_t offset, uint64_t count, uint32_t size) {
    return offset <= size && count <= size - offset;
}

bool fedmote_is_dimension(uint32_t value) { return value >= 1U && value <= FEDMOTE_DIMENSION_MAX; }

bool fedmote_are_dimensions(uint32_t a, uint32_t b, uint32_t c) {
    return fedmote_is_dimension(a) && fedmote_is_dimension(b) && fedmote_is_dimension(c);
}

bool fedmote_is_int8(int32_t value) { return value >= INT8_MIN && value <= INT8_MAX; }

bool fedmote_is_activation(int32_t low, int32_t high) {
    return fedmote_is_int8(low) && fedmote_is_int8(high) && low <= high;
}

bool fedmote_is_scaling(int32_t multiplier, int32_t shift) { return multiplier >= 0 && shift >= -31 && shift <= 30; }

bool fedmote_is_unit(const struct fedmote_op *op, uint32_t units, uint64_t macs) {
    return op->units == units && op->unit_macs >= macs;
}

bool fedmote_are_blocks(const struct fedmote_op *op, uint32_t count) {
    return fedmote_is_unit(op, count / FEDMOTE_BLOCK + (count % FEDMOTE_BLOCK != 0U),
                           count < FEDMOTE_BLOCK ? count : FEDMOTE_BLOCK);
}

bool fedmote_is_tensor(const struct fedmote_bounds *bounds, uint32_t offset, uint64_t count) {
    return offset % FEDMOTE_ALIGNMENT == 0U && count >= 1U && fedmote_is_inside(offset, count, bounds->encoder_bytes);
}

bool fedmote_is_image(const struct fedmote_bounds *bounds, uint32_t offset, uint32_t a, uint32_t b, uint32_t c) {
    return fedmote_is_tensor(bounds, offset, (uint64_t)a * b * c);
}

bool fedmote_is_constant(const struct fedmote_bounds *bounds, uint32_t offset, uint64_t count) {
    return offset % 4U == 0U && fedmote_is_inside(offset, count, bounds->weights_bytes);
}

bool fedmote_are_scalings(const uint8_t *scaling, uint32_t count) {
    for (const uint8_t *end = scaling + FEDMOTE_SCALING_BYTES * count; scaling != end;
         scaling += FEDMOTE_SCALING_BYTES) {
        if (!fedmote_is_scaling(fedmote_load_s32(scaling + 4), fedmote_load_s32(scaling + 8))) {
            return false;
        }
    }
    return true;
}

bool fedmote_are_channels(const struct fedmote_bounds *bounds, const struct fedmote_channels *channels,
                          uint64_t weight_bytes, uint32_t out_c, bool is_plain) {
    if (!fedmote_is_constant(bounds, channels->weights, weight_bytes) ||
        !fedmote_is_constant(bounds, channels->scaling, (uint64_t)FEDMOTE_SCALING_BYTES * out_c)) {
        return false;
    }
    const uint8_t *scaling = bounds->weights + channels->scaling;
    return is_plain ? fedmote_are_scalings(scaling, out_c) : fedmote_is_kernel_scaling(scaling, out_c);
}

bool fedmote_is_axis(uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation, uint32_t pad) {
    return fedmote_are_dimensions(kernel, stride, dilation) && pad <= FEDMOTE_DIMENSION_MAX &&
           (uint64_t)(out - 1U) * stride + (uint64_t)(kernel - 1U) * dilation <= INT32_MAX - FEDMOTE_DIMENSION_MAX;
}

/* Weights of `weight_bits` each in plain order, or of int8 in that of the kernels. */
static uint64_t weight_bytes(uint64_t count, uint32_t weight_bits, uint64_t arranged_bytes) {
    return weight_bits == 8U ? arranged_bytes : (count * weight_bits + 7U) / 8U;
}

static bool is_convolution(const struct fedmote_conv *op, const struct fedmote_bounds *bounds, uint32_t weight_bits,
                           uint64_t (*arranged_bytes)(const struct fedmote_conv *op)) {
    if (!fedmote_are_dimensions(op->in_h, op->in_w, op->in_c) ||
        !fedmote_are_dimensions(op->out_h, op->out_w, op->out_c) ||
        !fedmote_are_dimensions(op->groups, op->group_in_c, op->group_out_c) ||
        !fedmote_is_axis(op->out_h, op->kernel_h, op->stride_h, op->dilation_h, op->pad_top) ||
        !fedmote_is_axis(op->out_w, op->kernel_w, op->stride_w, op->dilation_w, op->pad_left)) {
        return false;
    }
    const uint64_t products = (uint64_t)op->kernel_h * op->kernel_w * op->group_in_c;
    return products <= FEDMOTE_DIMENSION_MAX && op->groups * op->group_in_c == op->in_c &&
           op->groups * op->group_out_c == op->out_c &&
           fedmote_is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->out_c * products) &&
           fedmote_is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->in_c) &&
           fedmote_is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->out_c) &&
           fedmote_are_channels(bounds, &op->channels,
                                weight_bytes(products * op->out_c, weight_bits, arranged_bytes(op)), op->out_c,
                                weight_bits != 8U) &&
           fedmote_is_int8(op->input_zero_point) && fedmote_is_int8(op->output_zero_point) &&
           fedmote_is_activation(op->activation_min, op->activation_max);
}

bool fedmote_is_conv(const struct fedmote_conv *op, const struct fedmote_bounds *bounds, uint32_t weight_bits) {
    return is_convolution(op, bounds, weight_bits, fedmote_conv_weight_bytes);
}

bool fedmote_is_depthwise(const struct fedmote_conv *op, const struct fedmote_bounds *bounds, uint32_t weight_bits) {
    return op->group_in_c == 1U && is_convolution(op, bounds, weight_bits, fedmote_depthwise_weight_bytes);
}

bool fedmote_is_dense(const struct fedmote_dense *op, const struct fedmote_bounds *bounds, uint32_t weight_bits) {
    return fedmote_is_dimension(op->in_n) && fedmote_is_dimension(op->out_n) &&
           fedmote_is_unit(&op->op, op->out_n, op->in_n) && fedmote_is_tensor(bounds, op->op.input_offset, op->in_n) &&
           fedmote_is_tensor(bounds, op->op.output_offset, op->out_n) &&
           fedmote_are_channels(
               bounds, &op->channels,
               weight_bytes((uint64_t)op->in_n * op->out_n, weight_bits, fedmote_dense_weight_bytes(op)), op->out_n,
               weight_bits != 8U) &&
           fedmote_is_int8(op->output_zero_point) && fedmote_is_activation(op->activation_min, op->activation_max);
}

/* Every window holds at least one element of the input. */
static bool meets_input(uint32_t in, uint32_t out, uint32_t kernel, uint32_t stride, uint32_t pad) {
    return pad < kernel && (uint64_t)(out - 1U) * stride < (uint64_t)in + pad;
}

bool fedmote_is_pool(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    const struct fedmote_pool *op = &record->pool;
    return fedmote_are_dimensions(op->in_h, op->in_w, op->channels) && fedmote_is_dimension(op->out_h) &&
           fedmote_is_dimension(op->out_w) && fedmote_is_axis(op->out_h, op->kernel_h, op->stride_h, 1U, op->pad_top) &&
           fedmote_is_axis(op->out_w, op->kernel_w, op->stride_w, 1U, op->pad_left) &&
           op->kernel_h * op->kernel_w <= FEDMOTE_DIMENSION_MAX &&
           meets_input(op->in_h, op->out_h, op->kernel_h, op->stride_h, op->pad_top) &&
           meets_input(op->in_w, op->out_w, op->kernel_w, op->stride_w, op->pad_left) &&
           fedmote_is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->channels * (op->kernel_h * op->kernel_w)) &&
           fedmote_is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           fedmote_is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->channels) &&
           fedmote_is_activation(op->activation_min, op->activation_max);
}

bool fedmote_are_operands(const struct fedmote_op *op, const struct fedmote_operands *operands,
                          const struct fedmote_bounds *bounds) {
    const uint32_t count = operands->count, count2 = operands->count2;
    if (count2 < 1U || count2 > count || operands->input2_is_constant > 1U) {
        return false;
    }
    return (operands->input2_is_constant != 0U ? fedmote_is_constant(bounds, operands->input2_offset, count2)
                                               : fedmote_is_tensor(bounds, operands->input2_offset, count2)) &&
           fedmote_are_blocks(op, count) && fedmote_is_tensor(bounds, op->input_offset, count) &&
           fedmote_is_tensor(bounds, op->output_offset, count) && fedmote_is_int8(operands->input1_zero_point) &&
           fedmote_is_int8(operands->input2_zero_point) && fedmote_is_int8(operands->output_zero_point);
}
