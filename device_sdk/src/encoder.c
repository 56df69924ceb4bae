/* SPDX-License-Identifier: Apache-2.0 */
#include "encoder.h"

#include <string.h>

#include "little_endian.h"
#include "operators/operator.h"

void fedmote_record_read(union fedmote_record *record, const uint8_t *bytes, uint32_t words) {
    for (uint32_t i = 0; i < words; i++) {
        const uint32_t word = fedmote_load_u32(bytes + 4U * i);
        memcpy((uint8_t *)record + 4U * i, &word, sizeof word);
    }
}

static void restart(struct fedmote_encoder *encoder) {
    encoder->record = encoder->package->ops;
    encoder->op = 0;
    encoder->unit = 0;
}

void fedmote_encoder_init(struct fedmote_encoder *encoder, const struct fedmote_package *package, int8_t *memory) {
    encoder->package = package;
    encoder->memory = memory;
    restart(encoder);
}

int8_t *fedmote_encoder_input(struct fedmote_encoder *encoder) {
    return encoder->memory + encoder->package->input_offset;
}

int32_t fedmote_encoder_run(struct fedmote_encoder *encoder, uint32_t macs) {
    const struct fedmote_package *package = encoder->package;
    uint32_t left = macs;
    bool has_worked = false;
    while (encoder->op < package->op_count) {
        union fedmote_record record;
        fedmote_record_read(&record, encoder->record, fedmote_load_u32(encoder->record) >> 16);
        const uint32_t unit_macs = record.op.unit_macs == 0U ? 1U : record.op.unit_macs;
        const uint32_t remaining = record.op.units - encoder->unit;
        uint32_t count = left / unit_macs;
        if (count == 0U) {
            if (has_worked) {
                return FEDMOTE_BUSY;
            }
            count = 1U; /* a single unit may be larger than the whole budget */
        }
        count = count < remaining ? count : remaining;
        const struct fedmote_operator *entry = fedmote_operator_find(package->operators, fedmote_op_code(&record.op));
        entry->run(&record, package->weights, encoder->memory, encoder->unit, encoder->unit + count);
        has_worked = true;
        left -= left / unit_macs < count ? left : count * unit_macs;
        encoder->unit += count;
        if (encoder->unit == record.op.units) {
            encoder->record += 4U * fedmote_op_words(&record.op);
            encoder->op++;
            encoder->unit = 0;
        }
    }
    restart(encoder);
    return FEDMOTE_OK;
}

const int8_t *fedmote_encoder_features(const struct fedmote_encoder *encoder) {
    return encoder->memory + encoder->package->feature_offset;
}
