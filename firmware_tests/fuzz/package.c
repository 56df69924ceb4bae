/* SPDX-License-Identifier: Apache-2.0
 *
 * Package files: the checksum is made right, so that the checks behind it are reached. What opens is run, in pieces of
 * a bounded number of multiply-accumulates, in an arena of exactly the size that it asks for. (mutants.c counts the
 * work.)
 */
#include "all_operators.h"
#include "crc32.h"
#include "encoder.h"
#include "fuzz.h"

enum { HEADER = 48, SIZE_AT = 8, CRC_AT = 12, HASH_AT = 16, ARENA_MAX = 1 << 18, BUDGET = 1000, CALLS = 200 };

static void mend(uint8_t *bytes, uint32_t size) {
    uint32_t said = 0;
    for (uint32_t i = 0; i < 4; i++) {
        said |= (uint32_t)bytes[SIZE_AT + i] << 8 * i;
    }
    uint32_t whole = said >= HEADER && said <= size ? said : size;
    uint32_t crc = fedmote_crc32(fedmote_crc32(0, bytes, CRC_AT), bytes + HASH_AT, whole - HASH_AT);
    for (uint32_t i = 0; i < 4; i++) {
        bytes[CRC_AT + i] = (uint8_t)(crc >> 8 * i);
    }
}

static void run(const struct fedmote_package *package) {
    uint8_t *memory = block_of(NULL, package->encoder_bytes);
    memset(memory, 0, package->encoder_bytes);
    struct fedmote_encoder encoder;
    fedmote_encoder_init(&encoder, package, (int8_t *)memory);
    memset(fedmote_encoder_input(&encoder), 1, package->input_count);
    int32_t status = FEDMOTE_BUSY;
    for (uint32_t i = 0; i < CALLS && status == FEDMOTE_BUSY; i++) {
        status = fedmote_encoder_run(&encoder, BUDGET);
    }
    must(status == FEDMOTE_BUSY || status == FEDMOTE_OK, "an opened package fails to run");
    free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 1 << 16) {
        return 0;
    }
    uint8_t *bytes = block_of(data, size);
    if (size >= HEADER) {
        mend(bytes, (uint32_t)size);
    }
    const struct fedmote_port port = {.operators = all_operators};
    struct fedmote_package package;
    int32_t status = fedmote_package_open(&package, &port, bytes, (uint32_t)size);
    if (status == FEDMOTE_OK && package.encoder_bytes <= ARENA_MAX) {
        run(&package);
    }
    free(bytes);
    return 0;
}
