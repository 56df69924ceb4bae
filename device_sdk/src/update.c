/* SPDX-License-Identifier: Apache-2.0 */
#include "update.h"

#include <math.h>
#include <string.h>

#include "crc32.h"

enum { FLOAT_BYTES = 4, KEY_ENCODING = 1, KEY_TENSOR = 2, TAG_F32_LE = 85 };

uint32_t fedmote_update_prefix(const struct fedmote_round *round, uint8_t out[FEDMOTE_UPDATE_PREFIX]) {
    uint32_t size = fedmote_cbor_head(out, FEDMOTE_CBOR_MAP, 2);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, KEY_ENCODING);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, FEDMOTE_ENCODING_F32);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, KEY_TENSOR);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_TAG, TAG_F32_LE);
    return size + fedmote_cbor_head(out + size, FEDMOTE_CBOR_BYTES, FLOAT_BYTES * round->package.head_parameters);
}

/* Parameter `index` of the update; also its bytes, little endian. */
static float write_delta(const struct fedmote_round *round, uint32_t index, uint8_t out[FLOAT_BYTES]) {
    float delta = round->head.arithmetic->delta(&round->head, fedmote_round_head_base(round), index);
    uint32_t bits = 0;
    memcpy(&bits, &delta, sizeof bits);
    for (uint32_t i = 0; i < FLOAT_BYTES; i++) {
        out[i] = (uint8_t)(bits >> 8 * i);
    }
    return delta;
}

uint32_t fedmote_update_size(const struct fedmote_round *round) {
    uint8_t prefix[FEDMOTE_UPDATE_PREFIX];
    return fedmote_update_prefix(round, prefix) + FLOAT_BYTES * round->package.head_parameters;
}

void fedmote_update_read(const struct fedmote_round *round, uint32_t offset, uint8_t *out, uint32_t size) {
    uint8_t piece[FEDMOTE_UPDATE_PREFIX];
    uint32_t prefix = fedmote_update_prefix(round, piece);
    uint32_t written = 0;
    if (round->recorded) {
        memcpy(out, round->recorded + offset, size);
        return;
    }
    while (written < size) {
        uint32_t at = offset + written;
        uint32_t begin = 0; /* of the piece, prefix or float, that holds byte `at` */
        uint32_t piece_size = prefix;
        if (at >= prefix) {
            begin = prefix + (at - prefix) / FLOAT_BYTES * FLOAT_BYTES;
            piece_size = FLOAT_BYTES;
            (void)write_delta(round, (at - prefix) / FLOAT_BYTES, piece);
        }
        uint32_t left = begin + piece_size - at;
        uint32_t count = left < size - written ? left : size - written;
        memcpy(out + written, piece + (at - begin), count);
        written += count;
    }
}

uint32_t fedmote_update_begin(const struct fedmote_round *round) {
    uint8_t prefix[FEDMOTE_UPDATE_PREFIX];
    return fedmote_crc32(0, prefix, fedmote_update_prefix(round, prefix));
}

int32_t fedmote_update_extend(const struct fedmote_round *round, uint32_t first, uint32_t count, uint32_t *crc) {
    for (uint32_t i = 0; i < count; i++) {
        uint8_t bytes[FLOAT_BYTES];
        if (!isfinite(write_delta(round, first + i, bytes))) {
            return FEDMOTE_ERR_UPDATE_NOT_FINITE;
        }
        *crc = fedmote_crc32(*crc, bytes, sizeof bytes);
    }
    return FEDMOTE_OK;
}
