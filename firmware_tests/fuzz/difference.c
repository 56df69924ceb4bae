/* SPDX-License-Identifier: Apache-2.0
 *
 * Difference files against a fixed base: the hashes in the header are made right, so that the stream is reached. The
 * first byte says in pieces of how many bytes it comes. Pages come in order and never beyond the target.
 */
#include "difference.h"

#include "fuzz.h"

enum { BASE = 512, HEADER = 88, BASE_HASH_AT = 16, TARGET_HASH_AT = 48, TARGET_SIZE_AT = 80, BASE_SIZE_AT = 84 };

/* As much of a package as the decoder looks at: size, and hash. */
static uint8_t *make_base(void) {
    uint8_t *base = block_of(NULL, BASE);
    for (uint32_t i = 0; i < BASE; i++) {
        base[i] = (uint8_t)(i * 37U >> 2);
    }
    base[8] = (uint8_t)BASE;
    base[9] = (uint8_t)(BASE >> 8);
    base[10] = base[11] = 0;
    return base;
}

static uint32_t decode(struct fedmote_difference *difference, const uint8_t *bytes, uint32_t size, uint32_t piece) {
    int32_t status = FEDMOTE_OK;
    uint32_t written = 0;
    for (uint32_t begin = 0; begin < size && status == FEDMOTE_OK;) {
        uint32_t count = begin == 0 && piece < FEDMOTE_DIFFERENCE_FIRST ? FEDMOTE_DIFFERENCE_FIRST : piece;
        count = count < size - begin ? count : size - begin;
        uint8_t *block = block_of(bytes + begin, count);
        uint32_t at = 0;
        while ((status = fedmote_difference_decode(difference, block, count, &at)) == FEDMOTE_BUSY) {
            must(difference->made - difference->filled == written && difference->filled > 0, "a page out of order");
            must(difference->made <= difference->target_size, "a page beyond the target");
            written = difference->made;
        }
        must(status != FEDMOTE_OK || at == count, "bytes were left over");
        free(block);
        begin += count;
    }
    must(status == FEDMOTE_OK || status == FEDMOTE_ERR_DIFFERENCE || status == FEDMOTE_ERR_DIFFERENCE_BASE,
         "a status that the decoder does not have");
    return written;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 + HEADER || size > 1 << 14) {
        return 0;
    }
    uint8_t *base = make_base();
    uint8_t *stream = block_of(data + 1, size - 1);
    uint8_t target_hash[32] = {7};
    memcpy(stream, "FMD1\1\0\0", 8);
    for (uint32_t i = 0; i < 4; i++) {
        stream[8 + i] = (uint8_t)((size - 1) >> 8 * i);
        stream[BASE_SIZE_AT + i] = base[8 + i];
    }
    memcpy(stream + BASE_HASH_AT, base + 16, sizeof target_hash);
    memcpy(stream + TARGET_HASH_AT, target_hash, sizeof target_hash);
    uint32_t target_size = (uint32_t)stream[TARGET_SIZE_AT] | (uint32_t)stream[TARGET_SIZE_AT + 1] << 8;
    stream[TARGET_SIZE_AT + 2] = stream[TARGET_SIZE_AT + 3] = 0;
    struct fedmote_difference difference;
    fedmote_difference_begin(&difference, base, target_hash, target_size, (uint32_t)size - 1);
    (void)decode(&difference, stream, (uint32_t)size - 1, 1U + data[0]);
    free(stream);
    free(base);
    return 0;
}
