/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything that comes from outside is checked once, here and in src/operators/, so that the inner loops check
 * nothing.
 */
#include "package.h"

#include <stddef.h>
#include <string.h>

#include "crc32.h"
#include "little_endian.h"
#include "operators/operator.h"

#define HEADER_BYTES 48U
#define FORMAT 2U
#define SECTION_ENTRY_BYTES 16U
#define PLAN_HEADER_BYTES 48U
#define HEAD_HEADER_BYTES 4U /* and LAYER_BYTES for each layer */
#define LAYER_BYTES 16U

struct span {
    const uint8_t *bytes;
    uint32_t size;
};

/* A finite float above zero, told from its bits: sign clear, exponent not all ones, not zero. */
static bool is_scale(uint32_t bits) { return bits > 0U && bits < 0x7F800000U; }

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
    if (own_size < HEADER_BYTES || own_size > *size || own_size % FEDMOTE_ALIGNMENT != 0U) {
        return FEDMOTE_ERR_PACKAGE_SIZE;
    }
    const uint32_t crc = fedmote_crc32(fedmote_crc32(0, bytes, 12), bytes + 16, own_size - 16U);
    if (crc != fedmote_load_u32(bytes + 12)) {
        return FEDMOTE_ERR_PACKAGE_CRC;
    }
    if (port->hash != NULL) {
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
        if (offset % FEDMOTE_ALIGNMENT != 0U || offset < end || !fedmote_is_inside(offset, length, size) ||
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
                             const struct fedmote_bounds *bounds) {
    uint32_t offset = PLAN_HEADER_BYTES;
    for (uint32_t i = 0; i < package->op_count; i++) {
        if (!fedmote_is_inside(offset, sizeof(struct fedmote_op), plan->size)) {
            return FEDMOTE_ERR_PACKAGE_BOUNDS;
        }
        const uint32_t opcode_words = fedmote_load_u32(plan->bytes + offset);
        const struct fedmote_operator *entry = fedmote_operator_find(package->operators, opcode_words & 0xFFFFU);
        if (entry == NULL) {
            return FEDMOTE_ERR_PACKAGE_OPERATOR;
        }
        const uint32_t words = entry->words;
        if (opcode_words >> 16 != words || !fedmote_is_inside(offset, 4U * words, plan->size)) {
            return FEDMOTE_ERR_PACKAGE_BOUNDS;
        }
        union fedmote_record record;
        fedmote_record_read(&record, plan->bytes + offset, words);
        if (!entry->is_valid(&record, bounds)) {
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
    const struct fedmote_bounds bounds = {package->encoder_bytes, weights->bytes, weights->size};
    if (!is_scale(fedmote_load_u32(words + 24)) || !fedmote_is_int8(fedmote_load_s32(words + 28)) ||
        !is_scale(feature_scale) || !fedmote_is_int8(package->head_shape.feature_zero_point) ||
        !fedmote_is_tensor(&bounds, package->input_offset, package->input_count) ||
        !fedmote_is_tensor(&bounds, package->feature_offset, package->feature_count)) {
        return FEDMOTE_ERR_PACKAGE_BOUNDS;
    }
    if (fedmote_load_u32(words + 44) != fedmote_kernel_arrangement) {
        return FEDMOTE_ERR_PACKAGE_ARRANGEMENT;
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
        if (fedmote_load_u32(layers) != inputs || !fedmote_is_dimension(outputs) ||
            fedmote_load_u32(layers + 12) != 0U ||
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
    if ((uintptr_t)bytes % FEDMOTE_ALIGNMENT != 0U) {
        return FEDMOTE_ERR_ARGUMENT;
    }
    int32_t status = check_file(port, bytes, &size);
    if (status == FEDMOTE_OK) {
        status = find_sections(bytes, size, sections);
    }
    if (status != FEDMOTE_OK) {
        return status;
    }
    package->operators = port->operators;
    package->bytes = bytes;
    package->size = size;
    package->hash = bytes + 16;
    status = read_plan(package, &sections[FEDMOTE_SECTION_PLAN], &sections[FEDMOTE_SECTION_WEIGHTS]);
    return status == FEDMOTE_OK ? read_head(package, &sections[FEDMOTE_SECTION_HEAD]) : status;
}
