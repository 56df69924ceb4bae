/* SPDX-License-Identifier: Apache-2.0
 *
 * The smallest program that runs the encoder of a package: reader, encoder and the operators that the build names in
 * FEDMOTE_FOOTPRINT_OPERATORS. Its image less that of empty.c, which starts up alike, is what such an encoder costs in
 * flash, the C library included.
 */
#include <string.h>

#include "encoder.h"
#include "fedmote/fedmote_operators.h"
#include "fedmote_board.h"

int main(void) {
    static const struct fedmote_operator *const operators[] = {FEDMOTE_FOOTPRINT_OPERATORS, NULL};
    static const struct fedmote_port port = {.operators = operators};
    static int8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    struct fedmote_package package;
    struct fedmote_encoder encoder;

    int32_t status = fedmote_package_open(&package, &port, (const uint8_t *)FEDMOTE_BOARD_REGIONS_PACKAGE_ADDRESS,
                                          FEDMOTE_BOARD_REGIONS_PACKAGE_BYTES);
    if (status != FEDMOTE_OK || package.encoder_bytes > sizeof memory) {
        return -1;
    }
    fedmote_encoder_init(&encoder, &package, memory);
    memcpy(fedmote_encoder_input(&encoder), (const void *)FEDMOTE_BOARD_REGIONS_SAMPLES_ADDRESS, package.input_count);
    status = fedmote_encoder_run(&encoder, UINT32_MAX);
    return status == FEDMOTE_OK ? fedmote_encoder_features(&encoder)[0] : -1;
}
