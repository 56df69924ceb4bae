/* SPDX-License-Identifier: Apache-2.0
 *
 * The number of this boot, in a file of its own: decimal digits and a line feed. The new number is on the disk, under
 * its name, before it is used.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "posix.h"

enum { PATH_BYTES = 4096, DIGITS = 16 };

/* The number in a file, 0 where there is no file; -1 where it holds none. */
static int64_t read_number(const char *path) {
    char text[DIGITS] = "";
    const int descriptor = open(path, O_RDONLY);
    if (descriptor < 0) {
        return errno == ENOENT ? 0 : -1;
    }
    const ssize_t size = read(descriptor, text, sizeof text - 1);
    (void)close(descriptor);
    char *end = NULL;
    const long long number = strtoll(text, &end, 10);
    if (size < 2 || *end != '\n' || number < 1 || number >= UINT32_MAX) {
        errno = EINVAL;
        return -1;
    }
    return number;
}

static bool write_number(const char *path, int64_t number) {
    char text[DIGITS];
    const int size = snprintf(text, sizeof text, "%lld\n", (long long)number);
    const int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (descriptor < 0) {
        return false;
    }
    const bool is_written = write(descriptor, text, (size_t)size) == size && fsync(descriptor) == 0;
    return close(descriptor) == 0 && is_written;
}

/* The directory holds the name: without this the old file may be back after a power cut. */
static bool sync_directory_of(const char *path) {
    char copy[PATH_BYTES];
    memcpy(copy, path, strlen(path) + 1);
    const int descriptor = open(dirname(copy), O_RDONLY);
    if (descriptor < 0) {
        return false;
    }
    const bool is_synced = fsync(descriptor) == 0;
    (void)close(descriptor);
    return is_synced;
}

int32_t boots_count(const char *path, uint32_t *number) {
    char temporary[PATH_BYTES];
    const int size = snprintf(temporary, sizeof temporary, "%s.new", path);
    if (size < 0 || (size_t)size >= sizeof temporary) {
        errno = ENAMETOOLONG;
        return BOOTS_ERROR;
    }
    const int64_t former = read_number(path);
    if (former < 0 || !write_number(temporary, former + 1) || rename(temporary, path) != 0 || !sync_directory_of(path)) {
        return BOOTS_ERROR;
    }
    *number = (uint32_t)(former + 1);
    return 0;
}
