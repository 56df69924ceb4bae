/* SPDX-License-Identifier: Apache-2.0
 *
 * Inference on a board: runs the packages of the package region over the samples region as soon as it starts and sends
 * the results over the serial line.
 */
#include "chip.h"
#include "fedmote_board.h"
#include "results.h"
#include "run.h"

int main(void) {
    static uint8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    static const struct run_region packages = {(const uint8_t *)FEDMOTE_BOARD_REGIONS_PACKAGE_ADDRESS,
                                               FEDMOTE_BOARD_REGIONS_PACKAGE_BYTES};
    static const struct run_region samples = {(const uint8_t *)FEDMOTE_BOARD_REGIONS_SAMPLES_ADDRESS,
                                              FEDMOTE_BOARD_REGIONS_SAMPLES_BYTES};

    chip_start();
    struct results *results = results_open();
    const int32_t status = run_packages(packages, samples, memory, sizeof memory, results_emit, results);
    if (status != FEDMOTE_OK) {
        results_refuse(results, status);
    }
    for (;;) {
        chip_sleep();
    }
}
