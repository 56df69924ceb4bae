/* SPDX-License-Identifier: Apache-2.0 */
#include "run.h"

#include <stddef.h>
#include <string.h>

#include "encoder.h"
#include "head.h"

static uint32_t round_16(uint32_t bytes) { return (bytes + 15U) & ~15U; }

static int32_t run_samples(const struct fedmote_package *package, const struct samples_region *samples, uint8_t *memory,
                           uint32_t memory_bytes, run_emit emit, void *context) {
    /* encoder, then hidden values f32[H] with the logits f32[C] behind them, then the result. The bounds that
     * fedmote_package_open() has checked keep these sums far below 2^32. */
    const uint32_t outputs = package->head_shape.outputs;
    const uint32_t encoder_bytes = round_16(package->encoder_bytes);
    const uint32_t float_bytes = round_16(4U * (package->head_shape.hidden + outputs));
    const uint32_t result_bytes = package->feature_count + 4U * outputs;
    if (memory_bytes < float_bytes + result_bytes || encoder_bytes > memory_bytes - float_bytes - result_bytes) {
        return FEDMOTE_ERR_ARENA;
    }
    float *hidden = (float *)(void *)(memory + encoder_bytes);
    float *logits = hidden + package->head_shape.hidden;
    uint8_t *result = memory + encoder_bytes + float_bytes;
    struct fedmote_encoder encoder;
    int32_t status = FEDMOTE_OK;
    fedmote_encoder_init(&encoder, package, (int8_t *)memory);

    for (uint32_t index = 0; status == FEDMOTE_OK && index < samples->count; index++) {
        uint32_t label;
        if (samples_region_read(samples, index, fedmote_encoder_input(&encoder), package->input_count, &label) != 0) {
            return FEDMOTE_ERR_SAMPLE_IO;
        }
        while (fedmote_encoder_run(&encoder, FEDMOTE_MACS_PER_STEP) == FEDMOTE_BUSY) {
        }
        memcpy(result, fedmote_encoder_features(&encoder), package->feature_count);
        fedmote_head_logits(&package->head_shape, package->head, fedmote_encoder_features(&encoder), hidden, logits);
        memcpy(result + package->feature_count, logits, 4U * outputs);
        status = emit(context, result, result_bytes);
    }
    return status;
}

static void skip(struct run_region *region, uint32_t size) {
    size = round_16(size) < region->size ? round_16(size) : region->size;
    region->bytes += size;
    region->size -= size;
}

int32_t run_packages(struct run_region packages, struct run_region samples, uint8_t *memory, uint32_t memory_bytes,
                     run_emit emit, void *context) {
    static const struct fedmote_operator *const operators[] = {FEDMOTE_ALL_OPERATORS, NULL};
    static const struct fedmote_port unsigned_port = {.hash = NULL, .operators = operators};
    struct samples_region region;
    int32_t status = samples_region_open(&region, samples.bytes, samples.size, UINT32_MAX);
    while (status == FEDMOTE_OK) {
        struct fedmote_package package;
        status = fedmote_package_open(&package, &unsigned_port, packages.bytes, packages.size);
        if (status == FEDMOTE_OK) {
            status = run_samples(&package, &region, memory, memory_bytes, emit, context);
        }
        if (status == FEDMOTE_OK) {
            skip(&packages, package.size);
            skip(&samples, region.size);
            status = samples_region_open(&region, samples.bytes, samples.size, UINT32_MAX);
            if (status == FEDMOTE_ERR_MALFORMED) { /* no samples: no package either */
                return FEDMOTE_OK;
            }
        }
    }
    return status;
}
