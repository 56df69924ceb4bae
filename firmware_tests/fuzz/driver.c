/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target without libFuzzer: all files of a corpus as they are, then N mutants of them. Mutants are drawn
 * from a seed, so a failure can be repeated; the one that fails is left in a file.
 *
 *     TARGET N SEED CRASH_FILE FILE...
 */
#include <sanitizer/common_interface_defs.h>
#include <signal.h>

#include "../mutation.h"
#include "fuzz.h"

enum { FILES_MAX = 512, SIZE_MAX_BYTES = 1 << 16, EDITS_MAX = 6 };

struct file {
    uint8_t *bytes;
    uint32_t size;
};

static struct file files[FILES_MAX];
static uint32_t file_count;

static struct file read_file(const char *path) {
    struct file file = {malloc(SIZE_MAX_BYTES), 0};
    FILE *stream = fopen(path, "rb");
    if (stream == NULL || file.bytes == NULL) {
        fail(path);
    }
    file.size = (uint32_t)fread(file.bytes, 1, SIZE_MAX_BYTES, stream);
    fclose(stream);
    return file;
}

static uint32_t insert(uint8_t *bytes, uint32_t size) {
    const struct file *donor = &files[next_random(file_count)];
    uint32_t count = 1 + next_random(32);
    if (donor->size == 0 || size + count > SIZE_MAX_BYTES) {
        return size;
    }
    uint32_t from = next_random(donor->size);
    count = count < donor->size - from ? count : donor->size - from;
    uint32_t at = next_random(size + 1);
    memmove(bytes + at + count, bytes + at, size - at);
    memcpy(bytes + at, donor->bytes + from, count);
    return size + count;
}

static uint32_t edit(uint8_t *bytes, uint32_t size) {
    static const uint8_t interesting[] = {0x00, 0x01, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x7F, 0x80, 0xFE, 0xFF};
    if (size == 0) {
        return insert(bytes, size);
    }
    uint32_t at = next_random(size);
    switch (next_random(6)) {
    case 0:
        bytes[at] ^= (uint8_t)(1U << next_random(8));
        return size;
    case 1:
        bytes[at] = interesting[next_random(sizeof interesting)];
        return size;
    case 2:
        bytes[at] = (uint8_t)next_random(256);
        return size;
    case 3:
        return at;
    case 4: {
        uint32_t count = 1 + next_random(16);
        count = count < size - at ? count : size - at;
        memmove(bytes + at, bytes + at + count, size - at - count);
        return size - count;
    }
    default:
        return insert(bytes, size);
    }
}

/* The input that is running, for whoever wants to repeat a failure. */
static uint8_t current[SIZE_MAX_BYTES];
static uint32_t current_size;
static const char *crash_file;

static void keep_input(void) {
    FILE *stream = fopen(crash_file, "wb");
    if (stream != NULL) {
        (void)fwrite(current, 1, current_size, stream);
        fclose(stream);
        fprintf(stderr, "the input is in %s\n", crash_file);
    }
}

static void on_abort(int number) {
    (void)number;
    keep_input();
    _Exit(1);
}

static void run(const uint8_t *bytes, uint32_t size) {
    memcpy(current, bytes, size);
    current_size = size;
    LLVMFuzzerTestOneInput(current, size);
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > FILES_MAX) {
        fail("usage: TARGET N SEED CRASH_FILE FILE...");
    }
    random_state = strtoull(argv[2], NULL, 10);
    crash_file = argv[3];
    __sanitizer_set_death_callback(keep_input);
    (void)signal(SIGABRT, on_abort);
    for (int i = 4; i < argc; i++) {
        files[file_count++] = read_file(argv[i]);
    }
    for (uint32_t i = 0; i < file_count; i++) {
        run(files[i].bytes, files[i].size);
    }
    static uint8_t mutant[2 * SIZE_MAX_BYTES];
    for (unsigned long n = strtoul(argv[1], NULL, 10); n > 0; n--) {
        const struct file *file = &files[next_random(file_count)];
        uint32_t size = file->size;
        memcpy(mutant, file->bytes, size);
        for (uint32_t edits = 1 + next_random(EDITS_MAX); edits > 0; edits--) {
            size = edit(mutant, size);
        }
        run(mutant, size < SIZE_MAX_BYTES ? size : SIZE_MAX_BYTES);
    }
    printf("%u files and %s mutants\n", file_count, argv[1]);
    return 0;
}
