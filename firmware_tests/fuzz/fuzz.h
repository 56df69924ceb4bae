/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fuzz targets have in common. A target is a function of bytes, as libFuzzer calls it; driver.c calls the same
 * function where there is no libFuzzer. Whatever the bytes are, it returns: a failed `must` or a sanitizer ends the
 * process instead.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void must(int is_so, const char *what) {
    if (!is_so) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* What is left of an input. Reading past its end gives zeros. */
struct input {
    const uint8_t *bytes;
    size_t left;
};

static inline uint32_t take(struct input *input, uint32_t bytes) {
    uint32_t value = 0;
    for (uint32_t i = 0; i < bytes; i++) {
        uint32_t byte = 0;
        if (input->left > 0) {
            byte = *input->bytes++;
            input->left--;
        }
        value |= byte << 8 * i;
    }
    return value;
}

/* A heap block of exactly `size` bytes, 16-aligned, so that AddressSanitizer sees the first byte beyond it. */
static inline uint8_t *block_of(const uint8_t *bytes, size_t size) {
    uint8_t *block = malloc(size > 0 ? size : 1);
    must(block != NULL && (uintptr_t)block % 16 == 0, "no memory");
    if (bytes != NULL && size > 0) {
        memcpy(block, bytes, size);
    }
    return block;
}

#endif
