/* SPDX-License-Identifier: Apache-2.0
 *
 * What programs that damage bytes on purpose have in common: draws that a seed repeats, and a loud end.
 */
#ifndef MUTATION_H
#define MUTATION_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t random_state; /* the seed at first */

static uint32_t next_random(uint32_t below) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % below;
}

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

#endif
