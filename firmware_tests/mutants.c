/* SPDX-License-Identifier: Apache-2.0
 *
 * Mutants of valid packages, opened and run under AddressSanitizer and UBSan. Package and arena lie in heap blocks of
 * exactly their sizes, with red zones around them. Every mutant is refused with a status, or runs: its units one after
 * the other, none more often than its record says, no call beyond its budget, and no unit with more work than its
 * record declares. Work is counted in basic blocks, which the compiler's coverage instrumentation reports.
 *
 *     mutants run N SEED FILE...     N mutants of the packages; prints refused, run, cut short, and blocks per multiply
 *     mutants write N SEED FILE...   writes N mutants and what became of them: u32 size, s32 status, the bytes
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "all_operators.h"
#include "crc32.h"
#include "encoder.h"
#include "little_endian.h"
#include "mutation.h"
#include "operators/operator.h"

#define FILES_MAX 64
#define OPERATORS_MAX 64
#define ARENA_MAX (1U << 20) /* larger wishes are refused, as a device refuses them */
#define BUDGET 1000U         /* multiply-accumulates of a call */
#define CALLS_MAX 2000U      /* longer encoders are cut short: what they do is bounded call by call */
#define BLOCKS_PER_MULTIPLY 16U
#define BLOCKS_PER_UNIT 400U /* of a unit, and of a call of a kernel */

struct file {
    uint8_t *bytes;
    uint32_t size;
};

static uint64_t blocks;    /* that have run */
static double most_blocks; /* per declared multiply-accumulate, of any call of a kernel */

void __sanitizer_cov_trace_pc(void);
__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void) { blocks++; }

/* AddressSanitizer's malloc aligns to 16; checked, because the reader insists on it. */
static uint8_t *allocate(size_t size) {
    uint8_t *memory = malloc(size);
    if (memory == NULL || (uintptr_t)memory % 16 != 0) {
        fail("no memory, or not 16-aligned");
    }
    return memory;
}

static void store_u32(uint8_t *bytes, uint32_t value) {
    for (uint32_t i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* Stands for the hash of a port: any function of all bytes will do. */
static void hash(void *context, const uint8_t *first, uint32_t first_size, const uint8_t *second, uint32_t second_size,
                 uint8_t digest[32]) {
    (void)context;
    uint32_t state = fedmote_crc32(fedmote_crc32(0, first, first_size), second, second_size);
    for (uint32_t i = 0; i < 8; i++, state = state * 2654435761U + 1U) {
        store_u32(digest + 4 * i, state);
    }
}

static void mend(uint8_t *bytes, uint32_t size, int has_hash) {
    if (size < 48) {
        return;
    }
    if (has_hash) {
        hash(NULL, bytes, 12, bytes + 48, size - 48, bytes + 16);
    }
    store_u32(bytes + 12, fedmote_crc32(fedmote_crc32(0, bytes, 12), bytes + 16, size - 16));
}

/* The unit that comes next, for the counting operators. */
static uint32_t next_unit;

static void count(const union fedmote_record *record, const uint8_t *weights, int8_t *memory, uint32_t first,
                  uint32_t end) {
    if (first != next_unit || end <= first || end > record->op.units) {
        fail("units out of order");
    }
    next_unit = end == record->op.units ? 0 : end;
    const uint64_t declared = (uint64_t)(end - first) * record->op.unit_macs;
    if (end - first > 1 && declared > BUDGET) {
        fail("a call beyond its budget");
    }
    const uint64_t before = blocks;
    fedmote_operator_find(all_operators, fedmote_op_code(&record->op))->run(record, weights, memory, first, end);
    const uint64_t used = blocks - before;
    if (used > BLOCKS_PER_MULTIPLY * declared + (uint64_t)BLOCKS_PER_UNIT * (end - first + 1)) {
        fprintf(stderr, "opcode %u: %llu blocks for %llu multiplies in %u units\n",
                (unsigned)fedmote_op_code(&record->op), (unsigned long long)used, (unsigned long long)declared,
                (unsigned)(end - first));
        fail("more work than declared");
    }
    const double per_multiply =
        (double)used / (double)(declared + (end - first + 1) * BLOCKS_PER_UNIT / BLOCKS_PER_MULTIPLY);
    most_blocks = per_multiply > most_blocks ? per_multiply : most_blocks;
}

/* The operators of this build, each of which counts before it works. */
static const struct fedmote_operator *const *counting_operators(void) {
    static struct fedmote_operator counting[OPERATORS_MAX];
    static const struct fedmote_operator *table[OPERATORS_MAX + 1];
    for (uint32_t i = 0; all_operators[i] != NULL && i < OPERATORS_MAX; i++) {
        memcpy(&counting[i], all_operators[i], sizeof counting[i]);
        counting[i].run = count;
        table[i] = &counting[i];
    }
    return table;
}

/* Opens a copy in a block of its own and runs it if it is accepted. Returns the status, or 1 if it was cut short. */
static int32_t try_package(const uint8_t *bytes, uint32_t size) {
    static struct fedmote_port port;
    port.hash = hash;
    port.operators = counting_operators();
    uint8_t *copy = allocate(size);
    memcpy(copy, bytes, size);
    struct fedmote_package package;
    int32_t status = fedmote_package_open(&package, &port, copy, size);
    if (status == FEDMOTE_OK && package.encoder_bytes <= ARENA_MAX) {
        int8_t *memory = (int8_t *)allocate(package.encoder_bytes);
        memset(memory, 0x5A, package.encoder_bytes);
        struct fedmote_encoder encoder;
        fedmote_encoder_init(&encoder, &package, memory);
        memset(fedmote_encoder_input(&encoder), 0x25, package.input_count);
        next_unit = 0;
        uint32_t calls = 0;
        while (fedmote_encoder_run(&encoder, BUDGET) == FEDMOTE_BUSY && status == FEDMOTE_OK) {
            status = ++calls == CALLS_MAX ? 1 : FEDMOTE_OK;
        }
        const int8_t *features = fedmote_encoder_features(&encoder);
        uint32_t sum = 0;
        for (uint32_t i = 0; i < package.feature_count; i++) {
            sum += (uint32_t)(features[i] + 128);
        }
        static volatile uint32_t sink;
        sink = sum;
        (void)sink;
        free(memory);
    }
    free(copy);
    return status;
}

/* A number near a border, near the old one, or any. */
static uint32_t nasty(uint32_t old) {
    static const uint32_t borders[] = {0,          1,          2,          3,          15,         16,
                                       17,         63,         64,         65,         127,        128,
                                       255,        256,        0x7FFF,     0x8000,     0xFFFF,     0x10000,
                                       0x10001,    0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF, 0xFFFFFF80,
                                       0xFFFFFF7F, 0x40000000, 0xFFFFFFFC, 0x0000FFF0};
    switch (next_random(6)) {
    case 0:
        return borders[next_random(sizeof borders / sizeof *borders)];
    case 1:
        return old + 1;
    case 2:
        return old - 1;
    case 3:
        return old ^ 1U << next_random(32);
    case 4:
        return next_random(2) == 0 ? old * 2 : old / 2;
    default:
        return old + next_random(64) - 32;
    }
}

static void edit_word(uint8_t *bytes, uint32_t offset, uint32_t size) {
    if (offset + 4 <= size) {
        store_u32(bytes + offset, nasty(fedmote_load_u32(bytes + offset)));
    }
}

/* One edit of a package of `*size` bytes whose sections are those of `original`. */
static void edit(uint8_t *bytes, uint32_t *size, const uint8_t *original) {
    const uint32_t sections = fedmote_load_u16(original + 6);
    switch (next_random(8)) {
    case 0: /* a bit, anywhere */
        bytes[next_random(*size)] ^= (uint8_t)(1U << next_random(8));
        break;
    case 1: /* a word, anywhere */
        edit_word(bytes, 4 * next_random(*size / 4), *size);
        break;
    case 2: /* the section table, and its length */
        edit_word(bytes, next_random(8) == 0 ? 4 : 48 + 4 * next_random(4 * sections), *size);
        break;
    case 3: /* the end */
        if (next_random(4) == 0 && *size > 64) {
            *size -= next_random(4) == 0 ? next_random(*size - 48) : 16 * (1 + next_random(3));
            if (next_random(4) != 0) {
                store_u32(bytes + 8, *size);
            }
        }
        break;
    default: { /* a word of a section, of the plan most often */
        const uint8_t *entry = original + 48 + 16 * next_random(sections);
        for (uint32_t i = 0; i < sections && next_random(4) != 0; i++) {
            if (fedmote_load_u32(original + 48 + 16 * i) == FEDMOTE_SECTION_PLAN) {
                entry = original + 48 + 16 * i;
            }
        }
        const uint32_t words = fedmote_load_u32(entry + 8) / 4;
        if (words > 0) {
            edit_word(bytes, fedmote_load_u32(entry + 4) + 4 * next_random(words), *size);
        }
    }
    }
}

/* Makes a mutant in `bytes`, which has room for the file; returns its size. */
static uint32_t mutate(uint8_t *bytes, const struct file *file) {
    uint32_t size = file->size;
    memcpy(bytes, file->bytes, size);
    for (uint32_t edits = 1 + next_random(3); edits > 0; edits--) {
        edit(bytes, &size, file->bytes);
    }
    const uint32_t care = next_random(10);
    if (care > 1) {
        mend(bytes, size, 1);
    } else if (care == 1) {
        mend(bytes, size, 0);
    }
    return size;
}

static struct file load(const char *path) {
    struct file file = {NULL, 0};
    FILE *stream = fopen(path, "rb");
    if (stream == NULL || fseek(stream, 0, SEEK_END) != 0) {
        fail("cannot read a package");
    }
    file.size = (uint32_t)ftell(stream);
    file.bytes = allocate(file.size);
    rewind(stream);
    if (fread(file.bytes, 1, file.size, stream) != file.size) {
        fail("cannot read a package");
    }
    fclose(stream);
    mend(file.bytes, file.size, 1);
    if (try_package(file.bytes, file.size) != FEDMOTE_OK) {
        fail("a package itself is refused, or takes too long");
    }
    return file;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > FILES_MAX) {
        fputs("usage: mutants run|write N SEED FILE...\n", stderr);
        return 2;
    }
    struct file files[FILES_MAX];
    const uint32_t file_count = (uint32_t)argc - 4;
    for (uint32_t i = 0; i < file_count; i++) {
        files[i] = load(argv[4 + i]);
    }
    random_state = strtoull(argv[3], NULL, 10) * UINT64_C(0x9E3779B97F4A7C15) + 1;
    uint32_t refused = 0, run = 0, cut = 0;
    for (unsigned long i = 0, n = strtoul(argv[2], NULL, 10); i < n; i++) {
        const struct file *file = &files[next_random(file_count)];
        uint8_t *mutant = allocate(file->size);
        const uint32_t size = mutate(mutant, file);
        const int32_t status = try_package(mutant, size);
        refused += status < 0;
        run += status == FEDMOTE_OK;
        cut += status > 0;
        if (strcmp(argv[1], "write") == 0) {
            uint8_t head[8];
            store_u32(head, size);
            store_u32(head + 4, (uint32_t)(status > 0 ? FEDMOTE_OK : status));
            fwrite(head, 1, sizeof head, stdout);
            fwrite(mutant, 1, size, stdout);
        }
        free(mutant);
    }
    for (uint32_t i = 0; i < file_count; i++) {
        free(files[i].bytes);
    }
    if (strcmp(argv[1], "run") == 0) {
        printf("%u %u %u %.2f\n", (unsigned)refused, (unsigned)run, (unsigned)cut, most_blocks);
    }
    return 0;
}
