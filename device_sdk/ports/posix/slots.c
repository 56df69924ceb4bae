/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix.h"

/* Opens the file; a new one gets its size, and reads as zeros, which is one of the two forms of erased. */
static int open_file(const char *path, off_t size) {
    struct stat status;
    const int descriptor = open(path, O_RDWR | O_CREAT, 0600);
    if (descriptor < 0) {
        return -1;
    }
    if (fstat(descriptor, &status) == 0) {
        if (status.st_size == size || (status.st_size == 0 && ftruncate(descriptor, size) == 0)) {
            return descriptor;
        }
        errno = EINVAL;
    }
    const int error = errno;
    (void)close(descriptor);
    errno = error;
    return -1;
}

bool slots_open(struct slots *slots, uint32_t slot_bytes, const char *path) {
    const size_t size = 2U * (size_t)slot_bytes;
    int descriptor = -1;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (path != NULL) {
        descriptor = open_file(path, (off_t)size);
        if (descriptor < 0) {
            return false;
        }
        flags = MAP_SHARED;
    }
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    if (descriptor >= 0) {
        (void)close(descriptor);
    }
    if (bytes == MAP_FAILED) {
        return false;
    }
    slots->bytes = bytes;
    slots->slot_bytes = slot_bytes;
    return true;
}

const uint8_t *slots_base(const struct slots *slots, uint32_t slot) {
    return slots->bytes + (size_t)slot * slots->slot_bytes;
}

int32_t slots_erase(struct slots *slots, uint32_t slot) {
    if (slot > 1U) {
        return SLOT_ERROR_ARGUMENT;
    }
    memset(slots->bytes + (size_t)slot * slots->slot_bytes, 0xFF, slots->slot_bytes);
    return 0;
}

int32_t slots_write(struct slots *slots, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    if (slot > 1U || offset > slots->slot_bytes || size > slots->slot_bytes - offset) {
        return SLOT_ERROR_ARGUMENT;
    }
    memcpy(slots->bytes + (size_t)slot * slots->slot_bytes + offset, bytes, size);
    return 0;
}
