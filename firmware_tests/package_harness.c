/* SPDX-License-Identifier: Apache-2.0
 *
 * Hostile packages under AddressSanitizer. Every candidate lies in a heap block of exactly its size, so that one byte
 * read behind it is caught; whatever fedmote_package_open() accepts is run, encoder and head.
 *
 *     package_harness cut FILE              every truncation, as the file says and with header and checksum mended
 *     package_harness flip FILE             every single bit, checksum not mended: none may be accepted
 *     package_harness mutate FILE N SEED    N random mutations of sections, table and plan, checksum mended
 *
 * Prints how many candidates were accepted, and exits with 1 where none may have been.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "all_operators.h"
#include "arena.h"
#include "crc32.h"
#include "encoder.h"
#include "head.h"
#include "little_endian.h"

#define ARENA_MAX (1U << 20) /* larger wishes are refused, as a device refuses them */
#define PIECES_MAX 100000U

static uint32_t random_state;

static uint32_t next_random(uint32_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % below;
}

/* AddressSanitizer's malloc aligns to 16; checked, because the reader insists on it. */
static void *allocate(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL || (uintptr_t)memory % 16 != 0) {
        fputs("no memory, or not 16-aligned\n", stderr);
        exit(2);
    }
    return memory;
}

static void store_u32(uint8_t *bytes, uint32_t value) {
    for (uint32_t i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

static void mend_checksum(uint8_t *bytes, uint32_t size) {
    if (size >= 48) {
        store_u32(bytes + 12, fedmote_crc32(fedmote_crc32(0, bytes, 12), bytes + 16, size - 16));
    }
}

static void train(const struct fedmote_arithmetic *arithmetic, const struct fedmote_package *package,
                  const struct fedmote_layout *layout, uint8_t *arena, const int8_t *features) {
    struct fedmote_head head = {
        .arithmetic = arithmetic,
        .shape = package->head_shape,
        .training = {.learning_rate_micro = 100000,
                     .momentum_micro = 500000,
                     .weight_decay_micro = 1000,
                     .clip_norm_micro = 1000000,
                     .trained_layers = 2},
        .parameters = arena + layout->head,
        .velocity = arena + layout->velocity,
        .scratch = arena + layout->scratch,
    };
    arithmetic->begin(&head, package->head);
    for (uint32_t step = 0; step < 2; step++) {
        arithmetic->batch_begin(&head, 2);
        do {
            for (uint32_t sample = 0; sample < 2; sample++) {
                arithmetic->batch_add(&head, features, package->head_shape.outputs - 1);
            }
        } while (arithmetic->batch_end(&head));
    }
}

/* Opens a copy in a block of its own; runs it where it is accepted. Returns whether it was. */
static int try_package(const uint8_t *bytes, uint32_t size) {
    uint8_t *copy = allocate(size);
    memcpy(copy, bytes, size);
    struct fedmote_package package;
    static const struct fedmote_port port = {.operators = all_operators};
    int is_accepted = fedmote_package_open(&package, &port, copy, size) == FEDMOTE_OK;
    struct fedmote_layout layout;
    static const struct fedmote_arithmetic *const arithmetics[] = {&fedmote_float32, &fedmote_int16};
    for (uint32_t i = 0; i < 2 && is_accepted; i++) {
        if (fedmote_layout_compute(&layout, &package, arithmetics[i], 1, ARENA_MAX) != FEDMOTE_OK) {
            continue;
        }
        uint8_t *arena = allocate(layout.total);
        int8_t *memory = allocate(package.encoder_bytes);
        memset(memory, 0x5A, package.encoder_bytes);
        struct fedmote_encoder encoder;
        fedmote_encoder_init(&encoder, &package, memory);
        memset(fedmote_encoder_input(&encoder), 0x25, package.input_count);
        int32_t status = FEDMOTE_BUSY;
        for (uint32_t piece = 0; piece < PIECES_MAX && status == FEDMOTE_BUSY; piece++) {
            status = fedmote_encoder_run(&encoder, 1000);
        }
        train(arithmetics[i], &package, &layout, arena, fedmote_encoder_features(&encoder));
        free(memory);
        free(arena);
    }
    free(copy);
    return is_accepted;
}

static uint32_t cut(uint8_t *bytes, uint32_t size) {
    uint32_t accepted = 0;
    for (uint32_t length = 0; length < size; length++) {
        accepted += (uint32_t)try_package(bytes, length);
    }
    for (uint32_t length = 48; length < size; length++) {
        uint8_t *mended = allocate(size);
        memcpy(mended, bytes, length);
        store_u32(mended + 8, length);
        mend_checksum(mended, length);
        accepted += (uint32_t)try_package(mended, length);
        free(mended);
    }
    return accepted;
}

static uint32_t flip(uint8_t *bytes, uint32_t size) {
    uint32_t accepted = 0;
    for (uint32_t bit = 0; bit < 8 * size; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
        accepted += (uint32_t)try_package(bytes, size);
        bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    return accepted;
}

/* A number near a border, near the old one, or any. */
static uint32_t nasty(uint32_t old) {
    static const uint32_t borders[] = {0,          1,          2,          15,         16,     17,
                                       64,         127,        128,        255,        0xFFFF, 0x10000,
                                       0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF, 0x8000, 0x7FFF0,
                                       0xFFFFFF80, 0xFFFFFF7F, 0x40000000, 0x00010001};
    switch (next_random(5)) {
    case 0:
        return borders[next_random(sizeof borders / sizeof *borders)];
    case 1:
        return old + 1;
    case 2:
        return old - 1;
    case 3:
        return old ^ 1U << next_random(32);
    default:
        return old + next_random(64) - 32;
    }
}

static uint32_t mutate(const uint8_t *bytes, uint32_t size, uint32_t count) {
    uint32_t accepted = 0;
    uint8_t *mutant = allocate(size);
    for (uint32_t i = 0; i < count; i++) {
        memcpy(mutant, bytes, size);
        const uint32_t sections = fedmote_load_u16(bytes + 6);
        for (uint32_t edits = 1 + next_random(3); edits > 0; edits--) {
            /* Half of the edits hit the plan, the others anything behind the hash; magic and format stay. */
            uint32_t begin = 48, words = (size - 48) / 4;
            for (uint32_t s = 0; s < sections && next_random(2) == 0; s++) {
                const uint8_t *entry = bytes + 48 + 16 * s;
                if (fedmote_load_u32(entry) == FEDMOTE_SECTION_PLAN) {
                    begin = fedmote_load_u32(entry + 4);
                    words = fedmote_load_u32(entry + 8) / 4;
                }
            }
            uint8_t *word = mutant + begin + 4 * next_random(words);
            store_u32(word, nasty(fedmote_load_u32(word)));
        }
        mend_checksum(mutant, size);
        accepted += (uint32_t)try_package(mutant, size);
    }
    free(mutant);
    return accepted;
}

int main(int argc, char **argv) {
    static uint8_t file[1 << 16];
    FILE *stream = argc >= 3 ? fopen(argv[2], "rb") : NULL;
    if (stream == NULL) {
        fputs("usage: package_harness cut|flip FILE | mutate FILE N SEED\n", stderr);
        return 2;
    }
    const uint32_t size = (uint32_t)fread(file, 1, sizeof file, stream);
    fclose(stream);
    if (!try_package(file, size)) {
        fputs("the package itself is refused\n", stderr);
        return 2;
    }
    uint32_t accepted = 0;
    if (strcmp(argv[1], "mutate") == 0 && argc == 5) {
        random_state = (uint32_t)strtoul(argv[4], NULL, 10) * 2654435761U + 1U;
        accepted = mutate(file, size, (uint32_t)strtoul(argv[3], NULL, 10));
        printf("%u\n", (unsigned)accepted);
        return 0;
    }
    accepted = strcmp(argv[1], "cut") == 0 ? cut(file, size) : flip(file, size);
    printf("%u\n", (unsigned)accepted);
    return accepted > 0;
}
