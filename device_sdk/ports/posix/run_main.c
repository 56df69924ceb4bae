/* SPDX-License-Identifier: Apache-2.0
 *
 * fedmote-run: inference as a process. Writes for every sample of every package s8[features], then f32[classes],
 * without any header.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fedmote_board.h"
#include "posix.h"
#include "run.h"

#define EXIT_USAGE 2
#define EXIT_BOARD 3
#define EMIT_ERROR (-150)

static int32_t emit(void *context, const uint8_t *result, uint32_t size) {
    return fwrite(result, 1, size, context) == size ? 0 : EMIT_ERROR;
}

static int complain(const char *what, const char *reason, int exit_code) {
    (void)fprintf(stderr, "fedmote-run: %s: %s\n", what, reason);
    return exit_code;
}

/* "status -21": the host knows its name. */
static int complain_status(const char *what, int32_t status, int exit_code) {
    char reason[32];
    (void)snprintf(reason, sizeof reason, "status %d", (int)status);
    return complain(what, reason, exit_code);
}

int main(int count, char **arguments) {
    static uint8_t memory[FEDMOTE_BOARD_RUN_ARENA_BYTES] __attribute__((aligned(16)));
    struct file_map packages, samples;

    if (count != 4) {
        (void)fprintf(stderr, "usage: fedmote-run PACKAGES SAMPLES OUTPUT\n");
        return EXIT_USAGE;
    }
    for (int i = 1; i <= 2; i++) {
        if (!file_map_open(i == 1 ? &packages : &samples, arguments[i])) {
            return complain(arguments[i], strerror(errno), EXIT_USAGE);
        }
    }
    FILE *output = fopen(arguments[3], "wb");
    if (output == NULL) {
        return complain(arguments[3], strerror(errno), EXIT_USAGE);
    }
    int32_t status =
        run_packages((struct run_region){packages.bytes, (uint32_t)packages.size},
                     (struct run_region){samples.bytes, (uint32_t)samples.size}, memory, sizeof memory, emit, output);
    if (fclose(output) != 0 && status == FEDMOTE_OK) {
        status = EMIT_ERROR;
    }
    if (status == EMIT_ERROR) {
        return complain(arguments[3], strerror(errno), EXIT_BOARD);
    }
    return status == FEDMOTE_OK ? EXIT_SUCCESS : complain_status(arguments[1], status, EXIT_BOARD);
}
