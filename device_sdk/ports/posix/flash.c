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

bool flash_open(struct flash *flash, const char *path) {
    const size_t size = 2U * ((size_t)flash->slot_bytes + flash->journal_bytes);
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
    flash->bytes = bytes;
    return true;
}

bool flash_sync(const struct flash *flash) {
    return msync(flash->bytes, 2U * ((size_t)flash->slot_bytes + flash->journal_bytes), MS_SYNC) == 0;
}

static int32_t erase(uint8_t *region, uint32_t region_bytes) {
    memset(region, 0xFF, region_bytes);
    return 0;
}

static int32_t write_bytes(uint8_t *region, uint32_t region_bytes, uint32_t offset, const uint8_t *bytes,
                           uint32_t size) {
    if (offset > region_bytes || size > region_bytes - offset) {
        return FLASH_ERROR_ARGUMENT;
    }
    memcpy(region + offset, bytes, size);
    return 0;
}

static uint8_t *slot_of(const struct flash *flash, uint32_t slot) {
    return flash->bytes + (size_t)slot * flash->slot_bytes;
}

static uint8_t *journal_of(const struct flash *flash, uint32_t region) {
    return flash->bytes + 2U * (size_t)flash->slot_bytes + (size_t)region * flash->journal_bytes;
}

const uint8_t *flash_slot_base(const struct flash *flash, uint32_t slot) { return slot_of(flash, slot); }

int32_t flash_slot_erase(struct flash *flash, uint32_t slot) {
    return slot > 1U ? FLASH_ERROR_ARGUMENT : erase(slot_of(flash, slot), flash->slot_bytes);
}

int32_t flash_slot_write(struct flash *flash, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    return slot > 1U ? FLASH_ERROR_ARGUMENT : write_bytes(slot_of(flash, slot), flash->slot_bytes, offset, bytes, size);
}

const uint8_t *flash_journal_base(const struct flash *flash, uint32_t region) { return journal_of(flash, region); }

int32_t flash_journal_erase(struct flash *flash, uint32_t region) {
    return region > 1U ? FLASH_ERROR_ARGUMENT : erase(journal_of(flash, region), flash->journal_bytes);
}

int32_t flash_journal_write(struct flash *flash, uint32_t region, uint32_t offset, const uint8_t *bytes,
                            uint32_t size) {
    return region > 1U ? FLASH_ERROR_ARGUMENT
                       : write_bytes(journal_of(flash, region), flash->journal_bytes, offset, bytes, size);
}
