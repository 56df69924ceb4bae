/* SPDX-License-Identifier: Apache-2.0
 *
 * The decoder of differences under AddressSanitizer and UBSan. Base, pieces and target lie in heap blocks of exactly
 * their sizes, with red zones around them.
 *
 *     differences vectors             lines `base difference` in hex: prints `status target`, with the stream in pieces
 * of 1, 7, 64 and all bytes behind its first ones differences mutants N SEED BASE DIFFERENCE     N mutants of a
 * difference; prints how many made a target, were refused
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "difference.h"
#include "little_endian.h"
#include "mutation.h"

enum { LINE = 1 << 20, TARGET_AT = 48, TARGET_SIZE_AT = 80, HEADER = 88, TARGET_MAX = 1 << 22 };

struct blob {
    uint8_t *bytes;
    uint32_t size;
};

static struct blob copy_of(const uint8_t *bytes, uint32_t size) {
    struct blob blob = {malloc(size > 0 ? size : 1), size};
    if (blob.bytes == NULL) {
        fail("no memory");
    }
    memcpy(blob.bytes, bytes, size);
    return blob;
}

/* Takes pages as a slot does: in order, multiples of 8, none beyond the target. */
static void write_page(const struct fedmote_difference *difference, struct blob *target, uint32_t *written) {
    if (difference->made - difference->filled != *written || difference->filled == 0 ||
        difference->made > target->size ||
        (difference->filled != FEDMOTE_DIFFERENCE_PAGE && difference->made != target->size)) {
        fail("a page out of order");
    }
    memcpy(target->bytes + *written, difference->page, difference->filled);
    *written = difference->made;
}

/* Decodes a stream whose header is believed where it speaks of the target, in pieces of `piece` bytes behind the first
 * ones. */
static int32_t decode(struct blob base, struct blob stream, uint32_t piece, struct blob *target) {
    struct fedmote_difference difference;
    uint8_t target_hash[32] = {0};
    const uint32_t target_size = stream.size < HEADER ? 0 : fedmote_load_u32(stream.bytes + TARGET_SIZE_AT);
    if (stream.size >= HEADER) {
        memcpy(target_hash, stream.bytes + TARGET_AT, sizeof target_hash);
    }
    target->size = target_size;
    target->bytes = malloc(target_size < TARGET_MAX ? target_size + 1 : 1);
    if (target_size >= TARGET_MAX) {
        return FEDMOTE_ERR_SLOT; /* as a device refuses what no slot holds */
    }
    fedmote_difference_begin(&difference, base.bytes, target_hash, target_size, stream.size);
    uint32_t written = 0;
    int32_t status = FEDMOTE_OK;
    for (uint32_t begin = 0; begin < stream.size && status == FEDMOTE_OK;) {
        uint32_t size = begin == 0 && piece < FEDMOTE_DIFFERENCE_FIRST ? FEDMOTE_DIFFERENCE_FIRST : piece;
        size = size < stream.size - begin ? size : stream.size - begin;
        struct blob bytes = copy_of(stream.bytes + begin, size);
        uint32_t at = 0;
        uint32_t calls = 0;
        do {
            status = fedmote_difference_decode(&difference, bytes.bytes, size, &at);
            if (status == FEDMOTE_BUSY) {
                write_page(&difference, target, &written);
            }
            if (++calls > target_size / FEDMOTE_DIFFERENCE_PAGE + 3) {
                fail("more calls than pages");
            }
        } while (status == FEDMOTE_BUSY);
        if (status == FEDMOTE_OK && at != size) {
            fail("bytes were left over");
        }
        free(bytes.bytes);
        begin += size;
    }
    if (status == FEDMOTE_OK && written != target_size) {
        fail("the stream ended well before its target");
    }
    return status;
}

static void print_hex(struct blob blob) {
    for (uint32_t i = 0; i < blob.size; i++) {
        printf("%02x", blob.bytes[i]);
    }
}

static struct blob unhex(const char *text, uint32_t digits) {
    struct blob blob = {malloc(digits / 2 + 1), digits / 2};
    for (uint32_t i = 0; i < blob.size; i++) {
        unsigned value = 0;
        (void)sscanf(text + 2 * i, "%2x", &value);
        blob.bytes[i] = (uint8_t)value;
    }
    return blob;
}

static void run_vector(const char *line) {
    static const uint32_t pieces[] = {1, 7, 64, UINT32_MAX};
    const char *second = strchr(line, ' ') + 1;
    struct blob base = unhex(line, (uint32_t)(second - line - 1));
    struct blob stream = unhex(second, (uint32_t)strcspn(second, "\n"));
    struct blob first = {0};
    int32_t first_status = 0;
    for (uint32_t i = 0; i < 4; i++) {
        struct blob target = {0};
        const int32_t status = decode(base, stream, pieces[i], &target);
        if (i > 0 &&
            (status != first_status || (status == FEDMOTE_OK && memcmp(target.bytes, first.bytes, target.size) != 0))) {
            fail("the result depends on the pieces");
        }
        if (i == 0) {
            first = target;
            first_status = status;
        } else {
            free(target.bytes);
        }
    }
    printf("%" PRId32 " ", first_status);
    if (first_status == FEDMOTE_OK) {
        print_hex(first);
    }
    printf("\n");
    free(base.bytes);
    free(stream.bytes);
    free(first.bytes);
}

static struct blob read_file(const char *path) {
    static uint8_t content[LINE];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail(path);
    }
    const size_t size = fread(content, 1, sizeof content, file);
    (void)fclose(file);
    return copy_of(content, (uint32_t)size);
}

/* A few changed bytes, mostly behind the header; at times cut or made longer, with the size in the header mended. */
static struct blob mutant_of(struct blob difference) {
    const uint32_t longer = next_random(4) == 0 ? next_random(40) : 0;
    struct blob mutant = {malloc(difference.size + longer + 1), difference.size + longer};
    memcpy(mutant.bytes, difference.bytes, difference.size);
    for (uint32_t i = 0; i < longer; i++) {
        mutant.bytes[difference.size + i] = (uint8_t)next_random(256);
    }
    if (next_random(4) == 0) {
        mutant.size = next_random(mutant.size) + 1;
    }
    for (uint32_t changes = next_random(4); changes > 0; changes--) {
        const uint32_t first = next_random(4) > 0 && mutant.size > HEADER ? HEADER : 0;
        mutant.bytes[first + next_random(mutant.size - first)] = (uint8_t)next_random(256);
    }
    for (uint32_t i = 0; i < 4 && mutant.size >= HEADER; i++) {
        mutant.bytes[8 + i] = (uint8_t)(mutant.size >> 8 * i);
    }
    return mutant;
}

static void run_mutants(uint32_t count, uint64_t seed, const char *base_path, const char *difference_path) {
    struct blob base = read_file(base_path);
    struct blob difference = read_file(difference_path);
    uint32_t made = 0;
    uint32_t refused = 0;
    random_state = seed;
    for (uint32_t i = 0; i < count; i++) {
        struct blob mutant = mutant_of(difference);
        struct blob exact = copy_of(mutant.bytes, mutant.size);
        struct blob target = {0};
        const int32_t status = decode(base, exact, 1 + next_random(300), &target);
        made += status == FEDMOTE_OK;
        refused += status < 0;
        free(mutant.bytes);
        free(exact.bytes);
        free(target.bytes);
    }
    printf("%" PRIu32 " %" PRIu32 "\n", made, refused);
    free(base.bytes);
    free(difference.bytes);
}

int main(int argc, char **argv) {
    static char line[LINE];
    if (argc == 6 && strcmp(argv[1], "mutants") == 0) {
        run_mutants((uint32_t)strtoul(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), argv[4], argv[5]);
        return 0;
    }
    while (argc == 2 && fgets(line, sizeof line, stdin)) {
        run_vector(line);
    }
    return argc == 2 ? 0 : 2;
}
