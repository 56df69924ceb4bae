/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything that comes from outside is checked here, once, so that the inner loops check nothing. Three habits make
 * that provable: sizes are multiplied in 64 bits after each factor was held below 2^16; a range is tested as `count <=
 * size - offset` after `offset <= size`; and nothing is read before the section that holds it was found inside the
 * file.
 */
#include "package.h"

#include <stddef.h>
#include <string.h>

#include "crc32.h"
#include "kernels/kernels.h"
#include "little_endian.h"

#define HEADER_BYTES 48U
#define FORMAT 1U
#define SECTION_ENTRY_BYTES 16U
#define PLAN_HEADER_BYTES 48U
#define HEAD_HEADER_BYTES 4U /* and LAYER_BYTES for each layer */
#define LAYER_BYTES 16U
#define ALIGNMENT 16U

/* Dimensions, strides and lengths of dot products. With int8 factors of at most 255 and 128, sums of 2^16 - 1 products
 * stay below 2^31. */
#define DIMENSION_MAX 0xFFFFU

struct span {
    const uint8_t *bytes;
    uint32_t size;
};

/* What the records are checked against. */
struct bounds {
    uint32_t encoder_bytes;
    struct span weights;
};

static bool is_inside(uint32_t offset, uint64_t count, uint32_t size) {
    return offset <= size && count <= size - offset;
}

static bool is_dimension(uint32_t value) { return value >= 1U && value <= DIMENSION_MAX; }

static bool are_dimensions(uint32_t a, uint32_t b, uint32_t c) {
    return is_dimension(a) && is_dimension(b) && is_dimension(c);
}

static bool is_int8(int32_t value) { return value >= INT8_MIN && value <= INT8_MAX; }

static bool is_activation(int32_t low, int32_t high) { return is_int8(low) && is_int8(high) && low <= high; }

static bool is_shift(int32_t shift) { return shift >= -31 && shift <= 30; }

static bool is_scaling(int32_t multiplier, int32_t shift) { return multiplier >= 0 && is_shift(shift); }

/* A finite float above zero, told from its bits: sign clear, exponent not all ones, not zero. */
static bool is_scale(uint32_t bits) { return bits > 0U && bits < 0x7F800000U; }

/* The pieces of an operator, and that none costs more than it says: the bound of a step rests on it. `macs` is a
 * product of a row in memory and at most 2^16 taps: no overflow in 64 bits. */
static bool is_unit(const struct fedmote_op *op, uint32_t units, uint64_t macs) {
    return op->units == units && op->unit_macs >= macs;
}

/* s8[count] at an offset of the encoder's arena. */
static bool is_tensor(const struct bounds *bounds, uint32_t offset, uint64_t count) {
    return offset % ALIGNMENT == 0U && count >= 1U && is_inside(offset, count, bounds->encoder_bytes);
}

/* s8[a][b][c]; call after are_dimensions(a, b, c). */
static bool is_image(const struct bounds *bounds, uint32_t offset, uint32_t a, uint32_t b, uint32_t c) {
    return is_tensor(bounds, offset, (uint64_t)a * b * c);
}

/* s8[count] or, with count times 4, s32[] at an offset of the section `weights`. */
static bool is_constant(const struct bounds *bounds, uint32_t offset, uint64_t count) {
    return offset % 4U == 0U && is_inside(offset, count, bounds->weights.size);
}

static bool are_channels(const struct bounds *bounds, const struct fedmote_channels *channels, uint64_t weight_count,
                         uint32_t out_c) {
    if (!is_constant(bounds, channels->weights, weight_count) || !is_constant(bounds, channels->bias, 4U * out_c) ||
        !is_constant(bounds, channels->multiplier, 4U * out_c) || !is_constant(bounds, channels->shift, 4U * out_c)) {
        return false;
    }
    for (uint32_t c = 0; c < out_c; c++) {
        if (!is_scaling(fedmote_load_s32(bounds->weights.bytes + channels->multiplier + 4U * c),
                        fedmote_load_s32(bounds->weights.bytes + channels->shift + 4U * c))) {
            return false;
        }
    }
    return true;
}

/* One axis of a sliding window: all coordinates that it touches fit into int32. */
static bool is_axis(uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation, uint32_t pad) {
    return are_dimensions(kernel, stride, dilation) && pad <= DIMENSION_MAX &&
           (uint64_t)(out - 1U) * stride + (uint64_t)(kernel - 1U) * dilation <= INT32_MAX - DIMENSION_MAX;
}

/* Every window holds at least one element of the input. */
static bool meets_input(uint32_t in, uint32_t out, uint32_t kernel, uint32_t stride, uint32_t pad) {
    return pad < kernel && (uint64_t)(out - 1U) * stride < (uint64_t)in + pad;
}

static bool is_conv(const struct fedmote_conv *op, const struct bounds *bounds, bool is_depthwise) {
    if (!are_dimensions(op->in_h, op->in_w, op->in_c) || !are_dimensions(op->out_h, op->out_w, op->out_c) ||
        !is_axis(op->out_h, op->kernel_h, op->stride_h, op->dilation_h, op->pad_top) ||
        !is_axis(op->out_w, op->kernel_w, op->stride_w, op->dilation_w, op->pad_left)) {
        return false;
    }
    const uint64_t products = (uint64_t)op->kernel_h * op->kernel_w * (is_depthwise ? 1U : op->in_c);
    if (products > DIMENSION_MAX) {
        return false;
    }
    if (is_depthwise ? op->depth_multiplier > DIMENSION_MAX || op->in_c * op->depth_multiplier != op->out_c
                     : op->depth_multiplier != 0U) {
        return false;
    }
    return is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->out_c * products) &&
           is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->in_c) &&
           is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->out_c) &&
           are_channels(bounds, &op->channels, products * op->out_c, op->out_c) && is_int8(op->input_zero_point) &&
           is_int8(op->output_zero_point) && is_activation(op->activation_min, op->activation_max);
}

static bool is_dense(const struct fedmote_dense *op, const struct bounds *bounds) {
    return is_dimension(op->in_n) && is_dimension(op->out_n) && is_unit(&op->op, op->out_n, op->in_n) &&
           is_tensor(bounds, op->op.input_offset, op->in_n) && is_tensor(bounds, op->op.output_offset, op->out_n) &&
           are_channels(bounds, &op->channels, (uint64_t)op->in_n * op->out_n, op->out_n) &&
           is_int8(op->input_zero_point) && is_int8(op->output_zero_point) &&
           is_activation(op->activation_min, op->activation_max);
}

static bool are_blocks(const struct fedmote_op *op, uint32_t count) {
    return is_unit(op, count / FEDMOTE_BLOCK + (count % FEDMOTE_BLOCK != 0U),
                   count < FEDMOTE_BLOCK ? count : FEDMOTE_BLOCK);
}

/* Left shifts of at most 22 keep 255 << left_shift within 31 bits, and right shifts keep the sum of two of them there.
 */
static bool is_sum(const struct fedmote_sum *op, const struct bounds *bounds) {
    return are_blocks(&op->op, op->count) && is_tensor(bounds, op->op.input_offset, op->count) &&
           is_tensor(bounds, op->input2_offset, op->count) && is_tensor(bounds, op->op.output_offset, op->count) &&
           is_int8(op->input1_zero_point) && is_int8(op->input2_zero_point) && is_int8(op->output_zero_point) &&
           op->left_shift <= 22U && is_scaling(op->multiplier1, op->shift1) && op->shift1 <= 0 &&
           is_scaling(op->multiplier2, op->shift2) && op->shift2 <= 0 &&
           is_scaling(op->output_multiplier, op->output_shift) && is_activation(op->activation_min, op->activation_max);
}

static bool is_pool(const struct fedmote_pool *op, const struct bounds *bounds) {
    return are_dimensions(op->in_h, op->in_w, op->channels) && is_dimension(op->out_h) && is_dimension(op->out_w) &&
           is_axis(op->out_h, op->kernel_h, op->stride_h, 1U, op->pad_top) &&
           is_axis(op->out_w, op->kernel_w, op->stride_w, 1U, op->pad_left) &&
           op->kernel_h * op->kernel_w <= DIMENSION_MAX &&
           meets_input(op->in_h, op->out_h, op->kernel_h, op->stride_h, op->pad_top) &&
           meets_input(op->in_w, op->out_w, op->kernel_w, op->stride_w, op->pad_left) &&
           is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->channels * (op->kernel_h * op->kernel_w)) &&
           is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->channels) &&
           is_activation(op->activation_min, op->activation_max);
}

static bool is_mean(const struct fedmote_mean *op, const struct bounds *bounds) {
    return are_dimensions(op->in_h, op->in_w, op->channels) && op->in_h * op->in_w <= DIMENSION_MAX &&
           is_unit(&op->op, op->channels, op->in_h * op->in_w) &&
           is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           is_tensor(bounds, op->op.output_offset, op->channels) && is_scaling(op->multiplier, op->shift) &&
           is_int8(op->input_zero_point) && is_int8(op->output_zero_point);
}

static bool is_padding(const struct fedmote_pad *op, const struct bounds *bounds) {
    return are_dimensions(op->in_h, op->in_w, op->channels) && is_dimension(op->out_h) && is_dimension(op->out_w) &&
           is_inside(op->pad_top, op->in_h, op->out_h) && is_inside(op->pad_left, op->in_w, op->out_w) &&
           is_unit(&op->op, op->out_h, (uint64_t)op->out_w * op->channels) &&
           is_image(bounds, op->op.input_offset, op->in_h, op->in_w, op->channels) &&
           is_image(bounds, op->op.output_offset, op->out_h, op->out_w, op->channels) && is_int8(op->value);
}

static bool is_relu(const struct fedmote_relu *op, const struct bounds *bounds) {
    return are_blocks(&op->op, op->count) && is_tensor(bounds, op->op.input_offset, op->count) &&
           is_tensor(bounds, op->op.output_offset, op->count) && is_scaling(op->multiplier, op->shift) &&
           is_int8(op->input_zero_point) && is_int8(op->output_zero_point) &&
           is_activation(op->activation_min, op->activation_max);
}

/* Words in a record of an opcode; 0 for an operator that this device does not have. */
static uint32_t record_words(uint32_t opcode) {
    switch (opcode) {
    case FEDMOTE_OPCODE_CONV_2D:
    case FEDMOTE_OPCODE_DEPTHWISE_CONV_2D:
        return sizeof(struct fedmote_conv) / 4U;
    case FEDMOTE_OPCODE_FULLY_CONNECTED:
        return sizeof(struct fedmote_dense) / 4U;
    case FEDMOTE_OPCODE_ADD:
        return sizeof(struct fedmote_sum) / 4U;
    case FEDMOTE_OPCODE_AVERAGE_POOL_2D:
    case FEDMOTE_OPCODE_MAX_POOL_2D:
        return sizeof(struct fedmote_pool) / 4U;
    case FEDMOTE_OPCODE_MEAN:
        return sizeof(struct fedmote_mean) / 4U;
    case FEDMOTE_OPCODE_PAD:
        return sizeof(struct fedmote_pad) / 4U;
    case FEDMOTE_OPCODE_RELU:
        return sizeof(struct fedmote_relu) / 4U;
    default:
        return 0U;
    }
}

static bool is_record(const union fedmote_record *record, const struct bounds *bounds) {
    switch (fedmote_op_code(&record->op)) {
    case FEDMOTE_OPCODE_CONV_2D:
        return is_conv(&record->conv, bounds, false);
    case FEDMOTE_OPCODE_DEPTHWISE_CONV_2D:
        return is_conv(&record->conv, bounds, true);
    case FEDMOTE_OPCODE_FULLY_CONNECTED:
        return is_dense(&record->dense, bounds);
    case FEDMOTE_OPCODE_ADD:
        return is_sum(&record->sum, bounds);
    case FEDMOTE_OPCODE_AVERAGE_POOL_2D:
    case FEDMOTE_OPCODE_MAX_POOL_2D:
        return is_pool(&record->pool, bounds);
    case FEDMOTE_OPCODE_MEAN:
        return is_mean(&record->mean, bounds);
    case FEDMOTE_OPCODE_PAD:
        return is_padding(&record->pad, bounds);
    default:
        return is_relu(&record->relu, bounds);
    }
}

/* The file as a whole: header, checksum, hash. `*size` becomes the package's own size. */
static int32_t check_file(const struct fedmote_port *port, const uint8_t *bytes, uint32_t *size) {
    if (*size < HEADER_BYTES) {
        return FEDMOTE_ERR_PACKAGE_SIZE;
    }
    if (memcmp(bytes, "FMP1", 4) != 0) {
        return FEDMOTE_ERR_PACKAGE_MAGIC;
    }
    if (fedmote_load_u16(bytes + 4) != FORMAT) {
        return FEDMOTE_ERR_PACKAGE_VERSION;
    }
    const uint32_t own_size = fedmote_load_u32(bytes + 8);
    if (own_size < HEADER_BYTES || own_size > *size || own_size % ALIGNMENT != 0U) {
        return FEDMOTE_ERR_PACKAGE_SIZE;
    }
    const uint32_t crc = fedmote_crc32(fedmote_crc32(0, bytes, 12), bytes + 16, own_size - 16U);
    if (crc != fedmote_load_u32(bytes + 12)) {
        return FEDMOTE_ERR_PACKAGE_CRC;
    }
    if (port != NULL && port->hash != NULL) {
        uint8_t digest[32];
        port->hash(port->context, bytes, 12, bytes + HEADER_BYTES, own_size - HEADER_BYTES, digest);
        if (memcmp(digest, bytes + 16, sizeof digest) != 0) {
            return FEDMOTE_ERR_PACKAGE_HASH;
        }
    }
    *size = own_size;
    return FEDMOTE_OK;
}

/* Fills sections[type] for the required types 1 to 4; skips the others. */
static int32_t find_sections(const uint8_t *bytes, uint32_t size, struct span sections[FEDMOTE_SECTION_HEAD + 1]) {
    const uint32_t count = fedmote_load_u16(bytes + 6);
    uint32_t end = HEADER_BYTES + count * SECTION_ENTRY_BYTES;
    if (end > size) {
        return FEDMOTE_ERR_PACKAGE_SECTION;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = bytes + HEADER_BYTES + i * SECTION_ENTRY_BYTES;
        const uint32_t type = fedmote_load_u32(entry);
        const uint32_t offset = fedmote_load_u32(entry + 4);
        const uint32_t length = fedmote_load_u32(entry + 8);
        if (offset % ALIGNMENT != 0U || offset < end || !is_inside(offset, length, size) ||
            fedmote_load_u32(entry + 12) != 0U) {
            return FEDMOTE_ERR_PACKAGE_SECTION;
        }
        end = offset + length;
        if (type >= FEDMOTE_SECTION_MANIFEST && type <= FEDMOTE_SECTION_HEAD) {
            if (sections[type].bytes != NULL) {
                return FEDMOTE_ERR_PACKAGE_SECTION;
            }
            sections[type].bytes = bytes + offset;
            sections[type].size = length;
        }
    }
    for (uint32_t type = FEDMOTE_SECTION_MANIFEST; type <= FEDMOTE_SECTION_HEAD; type++) {
        if (sections[type].bytes == NULL) {
            return FEDMOTE_ERR_PACKAGE_SECTION;
        }
    }
    return FEDMOTE_OK;
}

static int32_t check_records(const struct fedmote_package *package, const struct span *plan,
                             const struct bounds *bounds) {
    uint32_t offset = PLAN_HEADER_BYTES;
    for (uint32_t i = 0; i < package->op_count; i++) {
        if (!is_inside(offset, sizeof(struct fedmote_op), plan->size)) {
            return FEDMOTE_ERR_PACKAGE_BOUNDS;
        }
        const uint32_t opcode_words = fedmote_load_u32(plan->bytes + offset);
        const uint32_t words = record_words(opcode_words & 0xFFFFU);
        if (words == 0U) {
            return FEDMOTE_ERR_PACKAGE_OPERATOR;
        }
        if (opcode_words >> 16 != words || !is_inside(offset, 4U * words, plan->size)) {
            return FEDMOTE_ERR_PACKAGE_BOUNDS;
        }
        union fedmote_record record;
        fedmote_record_read(&record, plan->bytes + offset, words);
        if (!is_record(&record, bounds)) {
            return FEDMOTE_ERR_PACKAGE_BOUNDS;
        }
        offset += 4U * words;
    }
    return FEDMOTE_OK;
}

static int32_t read_plan(struct fedmote_package *package, const struct span *plan, const struct span *weights) {
    if (plan->size < PLAN_HEADER_BYTES) {
        return FEDMOTE_ERR_PACKAGE_BOUNDS;
    }
    const uint8_t *words = plan->bytes;
    package->op_count = fedmote_load_u32(words);
    package->encoder_bytes = fedmote_load_u32(words + 4);
    package->input_offset = fedmote_load_u32(words + 8);
    package->input_count = fedmote_load_u32(words + 12);
    package->feature_offset = fedmote_load_u32(words + 16);
    package->feature_count = fedmote_load_u32(words + 20);
    package->head_shape.feature_zero_point = fedmote_load_s32(words + 36);
    package->macs = fedmote_load_u32(words + 40);
    const uint32_t feature_scale = fedmote_load_u32(words + 32);
    memcpy(&package->head_shape.feature_scale, &feature_scale, sizeof feature_scale);
    package->ops = plan->bytes + PLAN_HEADER_BYTES;
    package->weights = weights->bytes;
    const struct bounds bounds = {package->encoder_bytes, *weights};
    if (!is_scale(fedmote_load_u32(words + 24)) || !is_int8(fedmote_load_s32(words + 28)) || !is_scale(feature_scale) ||
        !is_int8(package->head_shape.feature_zero_point) || fedmote_load_u32(words + 44) != 0U ||
        !is_tensor(&bounds, package->input_offset, package->input_count) ||
        !is_tensor(&bounds, package->feature_offset, package->feature_count)) {
        return FEDMOTE_ERR_PACKAGE_BOUNDS;
    }
    return check_records(package, plan, &bounds);
}

/* One or two layers, each of which reads what the one before makes; only the first of two has an activation. */
static bool read_shape(struct fedmote_head_shape *shape, const uint8_t *layers, uint32_t count) {
    uint32_t inputs = shape->inputs;
    shape->hidden = 0U;
    shape->is_relu = false;
    for (uint32_t i = 0; i < count; i++, layers += LAYER_BYTES) {
        const uint32_t outputs = fedmote_load_u32(layers + 4);
        const uint32_t activation = fedmote_load_u32(layers + 8);
        const bool is_last = i == count - 1U;
        if (fedmote_load_u32(layers) != inputs || !is_dimension(outputs) || fedmote_load_u32(layers + 12) != 0U ||
            activation > (is_last ? FEDMOTE_ACTIVATION_NONE : FEDMOTE_ACTIVATION_RELU)) {
            return false;
        }
        if (is_last) {
            shape->outputs = outputs;
        } else {
            shape->hidden = outputs;
            shape->is_relu = activation == FEDMOTE_ACTIVATION_RELU;
        }
        inputs = outputs;
    }
    return true;
}

static int32_t read_head(struct fedmote_package *package, const struct span *head) {
    struct fedmote_head_shape *shape = &package->head_shape;
    const uint32_t layers = head->size < HEAD_HEADER_BYTES ? 0U : fedmote_load_u32(head->bytes);
    if (layers < 1U || layers > 2U || head->size < HEAD_HEADER_BYTES + layers * LAYER_BYTES) {
        return FEDMOTE_ERR_PACKAGE_HEAD;
    }
    const uint32_t header_bytes = HEAD_HEADER_BYTES + layers * LAYER_BYTES;
    shape->inputs = package->feature_count;
    if (!read_shape(shape, head->bytes + HEAD_HEADER_BYTES, layers)) {
        return FEDMOTE_ERR_PACKAGE_HEAD;
    }
    const uint64_t parameters = fedmote_head_parameters(shape);
    if (4U * parameters != head->size - header_bytes) {
        return FEDMOTE_ERR_PACKAGE_HEAD;
    }
    package->head_parameters = (uint32_t)parameters;
    /* 4-aligned: sections are 16-aligned, the head's header has 20 or 36 bytes. */
    package->head = (const float *)(const void *)(head->bytes + header_bytes);
    return FEDMOTE_OK;
}

int32_t fedmote_package_open(struct fedmote_package *package, const struct fedmote_port *port, const uint8_t *bytes,
                             uint32_t size) {
    struct span sections[FEDMOTE_SECTION_HEAD + 1] = {{NULL, 0}};
    if ((uintptr_t)bytes % ALIGNMENT != 0U) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    int32_t status = check_file(port, bytes, &size);
    if (status == FEDMOTE_OK) {
        status = find_sections(bytes, size, sections);
    }
    if (status != FEDMOTE_OK) {
        return status;
    }
    package->bytes = bytes;
    package->size = size;
    package->hash = bytes + 16;
    status = read_plan(package, &sections[FEDMOTE_SECTION_PLAN], &sections[FEDMOTE_SECTION_WEIGHTS]);
    return status == FEDMOTE_OK ? read_head(package, &sections[FEDMOTE_SECTION_HEAD]) : status;
}
