/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "posix.h"

bool cache_open(struct cache *cache, uint32_t size) {
    cache->bytes = malloc(size);
    cache->size = size;
    return cache->bytes != NULL;
}

int32_t cache_erase(struct cache *cache) {
    memset(cache->bytes, 0xFF, cache->size);
    return 0;
}

int32_t cache_write(struct cache *cache, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    if (offset > cache->size || size > cache->size - offset) {
        return CACHE_ERROR_ARGUMENT;
    }
    memcpy(cache->bytes + offset, bytes, size);
    return 0;
}
