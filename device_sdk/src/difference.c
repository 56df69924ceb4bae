/* SPDX-License-Identifier: Apache-2.0 */
#include "difference.h"

#include <string.h>

#include "little_endian.h"

enum {
    /* Fields of the header by their offsets. */
    SIZE_AT = 8,
    BASE_HASH_AT = 16,
    TARGET_HASH_AT = 48,
    TARGET_SIZE_AT = 80,
    BASE_SIZE_AT = 84,
    HEADER_BYTES = 88,
    CODE_BYTES = FEDMOTE_DIFFERENCE_FIRST - HEADER_BYTES, /* the range coder's first ones */
    /* Fields of a package. */
    PACKAGE_SIZE_AT = 8,
    PACKAGE_HASH_AT = 16,
    HASH_BYTES = 32,
    /* Of the code. */
    RATE = 5, /* a decision moves its probability by 1/32 of the way */
    SEGMENT_BITS = 64,
    MEAN_PER_CLASS = 32
};

#define ONE_HALF 0x8000U
#define SMALLEST_RANGE (1U << 24)

static const uint8_t beginning[SIZE_AT] = {'F', 'M', 'D', '1', FEDMOTE_DIFFERENCE_FORMAT, 0, 0, 0};

/* The bytes of one call. */
struct input {
    const uint8_t *bytes;
    uint32_t at, size;
};

void fedmote_difference_begin(struct fedmote_difference *difference, const uint8_t *base, const uint8_t *target_hash,
                              uint32_t target_size, uint32_t size) {
    memset(difference, 0, sizeof *difference);
    difference->base = base;
    difference->target_hash = target_hash;
    difference->target_size = target_size;
    difference->size = size;
    difference->range = UINT32_MAX;
    for (uint32_t i = 0; i < FEDMOTE_DIFFERENCE_CLASSES; i++) {
        for (uint32_t j = 0; j < FEDMOTE_DIFFERENCE_LENGTHS; j++) {
            difference->probability[i][j] = ONE_HALF;
        }
    }
}

/* ---- header -------------------------------------------------------------------------------------------------------
 */

/* Takes the header and the range coder's first bytes, which the first piece holds. The checksum is believed. */
static int32_t take_header(struct fedmote_difference *difference, struct input *input) {
    const uint8_t *header = input->bytes + input->at;
    const uint8_t *base = difference->base;
    if (input->size - input->at < HEADER_BYTES + CODE_BYTES || memcmp(header, beginning, sizeof beginning) != 0 ||
        fedmote_load_u32(header + SIZE_AT) != difference->size ||
        memcmp(header + TARGET_HASH_AT, difference->target_hash, HASH_BYTES) != 0 ||
        fedmote_load_u32(header + TARGET_SIZE_AT) != difference->target_size) {
        return FEDMOTE_ERR_DIFFERENCE;
    }
    if (memcmp(header + BASE_HASH_AT, base + PACKAGE_HASH_AT, HASH_BYTES) != 0 ||
        fedmote_load_u32(header + BASE_SIZE_AT) != fedmote_load_u32(base + PACKAGE_SIZE_AT)) {
        return FEDMOTE_ERR_DIFFERENCE_BASE;
    }
    for (uint32_t i = 0; i < CODE_BYTES; i++) {
        difference->code = difference->code << 8 | header[HEADER_BYTES + i];
    }
    input->at += HEADER_BYTES + CODE_BYTES;
    difference->taken = HEADER_BYTES + CODE_BYTES;
    return FEDMOTE_OK;
}

/* ---- range coder --------------------------------------------------------------------------------------------------
 */

/* Makes the range wide enough for a decision. False: that takes more bytes than there are. */
static bool widen(struct fedmote_difference *difference, struct input *input) {
    while (difference->range < SMALLEST_RANGE) {
        if (input->at == input->size) {
            return false;
        }
        difference->range <<= 8;
        difference->code = difference->code << 8 | input->bytes[input->at++];
    }
    return true;
}

/* Takes the upper part of the range, from `bound` on, or the lower one. */
static bool split(struct fedmote_difference *difference, uint32_t bound) {
    const bool is_upper = difference->code >= bound;
    difference->code -= is_upper ? bound : 0;
    difference->range = is_upper ? difference->range - bound : bound;
    return is_upper;
}

/* Reads bits as they are until there are `count`. False where bytes are missing. */
static bool read_bits(struct fedmote_difference *difference, struct input *input, uint32_t count) {
    for (; difference->bit_count < count; difference->bit_count++) {
        if (!widen(difference, input)) {
            return false;
        }
        difference->bits = difference->bits << 1 | split(difference, difference->range >> 1);
    }
    difference->bit_count = 0;
    return true;
}

/* Reads how many bits the magnitude of the next change has. False where bytes are missing. */
static bool measure(struct fedmote_difference *difference, struct input *input) {
    const uint32_t wanted = difference->mean[difference->lane] / MEAN_PER_CLASS;
    const uint32_t class = wanted < FEDMOTE_DIFFERENCE_CLASSES ? wanted : FEDMOTE_DIFFERENCE_CLASSES - 1;
    while (!difference->is_measured) {
        if (!widen(difference, input)) {
            return false;
        }
        uint16_t *probability = &difference->probability[class][difference->length]; /* that there are no more bits */
        if (split(difference, (difference->range >> 16) * *probability)) {
            *probability = (uint16_t)(*probability - (*probability >> RATE));
            difference->length++;
        } else {
            *probability = (uint16_t)(*probability + ((0x10000U - *probability) >> RATE));
            difference->is_measured = true;
        }
        difference->is_measured = difference->is_measured || difference->length == FEDMOTE_DIFFERENCE_LENGTHS;
    }
    return true;
}

/* ---- bytes --------------------------------------------------------------------------------------------------------
 */

/* Reads where the next bytes have their base. */
static int32_t begin_segment(struct fedmote_difference *difference, struct input *input) {
    if (!read_bits(difference, input, SEGMENT_BITS)) {
        return FEDMOTE_IDLE;
    }
    const uint32_t base_size = fedmote_load_u32(difference->base + PACKAGE_SIZE_AT);
    difference->left = (uint32_t)(difference->bits >> 32);
    difference->from = (uint32_t)difference->bits;
    const bool is_inside = difference->left > 0 && difference->left <= difference->target_size - difference->made &&
                           difference->left <= base_size && difference->from <= base_size - difference->left;
    return is_inside ? FEDMOTE_OK : FEDMOTE_ERR_DIFFERENCE;
}

/* The change whose length and bits are read: the sign, then all of the magnitude but its first bit. */
static uint8_t change(const struct fedmote_difference *difference) {
    if (difference->length == 0) {
        return 0;
    }
    const uint32_t first = 1U << (difference->length - 1);
    const uint32_t bits = (uint32_t)difference->bits;
    const uint32_t magnitude = first | (bits & (first - 1));
    return (uint8_t)((bits & first) != 0 ? 0 - magnitude : magnitude);
}

/* Makes one byte of the target. FEDMOTE_IDLE where bytes are missing: what is read already is kept. */
static int32_t make_byte(struct fedmote_difference *difference, struct input *input) {
    if (difference->left == 0) {
        const int32_t status = begin_segment(difference, input);
        if (status != FEDMOTE_OK) {
            return status;
        }
    }
    if (!measure(difference, input) || !read_bits(difference, input, difference->length)) {
        return FEDMOTE_IDLE;
    }
    uint8_t *mean = &difference->mean[difference->lane];
    difference->page[difference->filled++] = (uint8_t)(difference->base[difference->from++] + change(difference));
    *mean = (uint8_t)((3U * *mean + 16U * difference->length) / 4);
    difference->lane = (uint8_t)(difference->lane + 1U == FEDMOTE_DIFFERENCE_LANES ? 0 : difference->lane + 1);
    difference->length = 0;
    difference->is_measured = false;
    difference->left--;
    difference->made++;
    return FEDMOTE_OK;
}

/* Fills the page as far as the bytes reach. FEDMOTE_BUSY: it is to be written. */
static int32_t fill_page(struct fedmote_difference *difference, struct input *input) {
    int32_t status = FEDMOTE_OK;
    while (status == FEDMOTE_OK && difference->filled < FEDMOTE_DIFFERENCE_PAGE &&
           difference->made < difference->target_size) {
        status = make_byte(difference, input);
    }
    return status == FEDMOTE_OK ? FEDMOTE_BUSY : status;
}

/* The last byte is in: has the target come to its end with it? */
static int32_t check_end(const struct fedmote_difference *difference) {
    const bool is_whole =
        difference->made == difference->target_size && difference->code == 0 && difference->range >= SMALLEST_RANGE;
    return is_whole ? FEDMOTE_OK : FEDMOTE_ERR_DIFFERENCE;
}

/* Makes bytes out of the stream behind its header. */
static int32_t decode_body(struct fedmote_difference *difference, struct input *input) {
    const uint32_t begin = input->at;
    int32_t status = FEDMOTE_IDLE;
    if (difference->made < difference->target_size) {
        status = fill_page(difference, input);
    } else {
        (void)widen(difference, input); /* as the encoder did behind its last decision */
    }
    difference->taken += input->at - begin;
    if (status != FEDMOTE_IDLE) {
        return status;
    }
    if (input->at < input->size) {
        return FEDMOTE_ERR_DIFFERENCE; /* the target is complete, and there is more */
    }
    return difference->taken == difference->size ? check_end(difference) : FEDMOTE_OK;
}

int32_t fedmote_difference_decode(struct fedmote_difference *difference, const uint8_t *bytes, uint32_t size,
                                  uint32_t *at) {
    struct input input = {.bytes = bytes, .at = *at, .size = size};
    if (difference->filled == FEDMOTE_DIFFERENCE_PAGE || difference->made == difference->target_size) {
        difference->filled = 0; /* it was written */
    }
    int32_t status = difference->taken == 0 ? take_header(difference, &input) : FEDMOTE_OK;
    if (status == FEDMOTE_OK) {
        status = decode_body(difference, &input);
    }
    *at = input.at;
    return status;
}
