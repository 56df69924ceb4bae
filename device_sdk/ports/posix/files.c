/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix.h"

bool file_map_open(struct file_map *map, const char *path) {
    struct stat status;
    const int descriptor = open(path, O_RDONLY);
    map->bytes = NULL;
    map->size = 0;
    if (descriptor < 0) {
        return false;
    }
    bool is_mapped = fstat(descriptor, &status) == 0;
    if (is_mapped && status.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        is_mapped = bytes != MAP_FAILED;
        if (is_mapped) {
            map->bytes = bytes;
            map->size = (size_t)status.st_size;
        }
    }
    (void)close(descriptor); /* the map outlives it */
    return is_mapped;
}
