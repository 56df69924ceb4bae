/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as hexadecimal digits, for harnesses that read vectors line by line.
 */
#ifndef HEX_H
#define HEX_H

#include <stdint.h>
#include <stdio.h>

/* Reads digits as long as there are two of them; returns the number of bytes. */
static inline uint32_t unhex(const char *text, uint8_t *out) {
    uint32_t size = 0;
    unsigned value = 0;
    while (sscanf(text + 2 * size, "%2x", &value) == 1) {
        out[size++] = (uint8_t)value;
    }
    return size;
}

static inline void print_hex(const uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        printf("%02x", bytes[i]);
    }
}

#endif
