/* SPDX-License-Identifier: Apache-2.0 */
#include "samples.h"

#include <string.h>

#include "crc32.h"

enum { PREFIX_MAX = 19, RECORD_HEAD = 12, KEY_COUNT = 1, KEY_INPUT_BYTES = 2, KEY_RECORDS = 3 };

static uint32_t record_bytes(const struct fedmote_round *round) { return RECORD_HEAD + round->package.input_count; }

/* {1: count, 2: input_bytes, 3: records} up to the records; returns its size. */
static uint32_t write_prefix(const struct fedmote_round *round, uint8_t out[PREFIX_MAX]) {
    uint32_t size = fedmote_cbor_head(out, FEDMOTE_CBOR_MAP, 3);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, KEY_COUNT);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, round->results.sent);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, KEY_INPUT_BYTES);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, round->package.input_count);
    size += fedmote_cbor_head(out + size, FEDMOTE_CBOR_UINT, KEY_RECORDS);
    return size + fedmote_cbor_head(out + size, FEDMOTE_CBOR_BYTES, round->results.sent * record_bytes(round));
}

/* Index, label and epochs of a sample, little endian. */
static void write_record_head(const struct fedmote_round *round, uint32_t sample, uint8_t out[RECORD_HEAD]) {
    const uint32_t words[3] = {sample, fedmote_round_labels(round)[sample],
                               fedmote_round_partner_epochs(round)[sample]};
    for (uint32_t i = 0; i < RECORD_HEAD; i++) {
        out[i] = (uint8_t)(words[i / 4] >> 8 * (i % 4));
    }
}

uint32_t fedmote_samples_most(const struct fedmote_round *round) {
    return (UINT32_MAX - PREFIX_MAX) /
           record_bytes(round); /* the arena holds a sample and the link buffers: no overflow */
}

uint32_t fedmote_samples_size(const struct fedmote_round *round) {
    uint8_t prefix[PREFIX_MAX];
    return write_prefix(round, prefix) + round->results.sent * record_bytes(round);
}

/* The sample of a record: counts on from where the last one was found, or from the front. At most one pass over n
 * words. */
static uint32_t find_sample(struct fedmote_round *round, uint32_t record) {
    const uint32_t *partner = fedmote_round_partner_epochs(round);
    if (record < round->serve_record) {
        round->serve_record = round->serve_sample = 0;
    }
    while (round->serve_sample < round->sample_count) {
        if (partner[round->serve_sample] != 0) {
            if (round->serve_record == record) {
                break;
            }
            round->serve_record++;
        }
        round->serve_sample++;
    }
    return round->serve_sample;
}

/* Copies what of `piece`, which holds blob bytes [begin, begin + piece_size), lies in the wanted range. */
static uint32_t copy_from(const void *piece, uint32_t begin, uint32_t piece_size, uint32_t at, uint8_t *out,
                          uint32_t size) {
    uint32_t left = begin + piece_size - at;
    uint32_t count = left < size ? left : size;
    memcpy(out, (const uint8_t *)piece + (at - begin), count);
    return count;
}

int32_t fedmote_samples_read(struct fedmote_round *round, uint32_t offset, uint8_t *out, uint32_t size) {
    uint8_t prefix[PREFIX_MAX];
    uint32_t prefix_size = write_prefix(round, prefix);
    uint32_t written = 0;
    while (written < size) {
        uint32_t at = offset + written;
        uint32_t left = size - written;
        if (at < prefix_size) {
            written += copy_from(prefix, 0, prefix_size, at, out + written, left);
            continue;
        }
        uint32_t record = (at - prefix_size) / record_bytes(round);
        uint32_t begin = prefix_size + record * record_bytes(round);
        uint32_t sample = find_sample(round, record);
        if (sample == round->sample_count) { /* cannot be: `sent` counts the words that are searched here */
            return FEDMOTE_ERR_STATE;
        }
        if (at < begin + RECORD_HEAD) {
            uint8_t head[RECORD_HEAD];
            write_record_head(round, sample, head);
            written += copy_from(head, begin, RECORD_HEAD, at, out + written, left);
            continue;
        }
        int32_t status = fedmote_round_load(round, sample);
        if (status != FEDMOTE_OK) {
            return status;
        }
        written += copy_from(fedmote_encoder_input(&round->encoder), begin + RECORD_HEAD, round->package.input_count,
                             at, out + written, left);
    }
    return FEDMOTE_OK;
}

uint32_t fedmote_samples_begin(struct fedmote_round *round) {
    uint8_t prefix[PREFIX_MAX];
    round->serve_record = round->serve_sample = 0;
    return fedmote_crc32(0, prefix, write_prefix(round, prefix));
}

uint32_t fedmote_samples_extend(struct fedmote_round *round, uint32_t sample, uint32_t crc) {
    uint8_t head[RECORD_HEAD];
    write_record_head(round, sample, head);
    crc = fedmote_crc32(crc, head, sizeof head);
    return fedmote_crc32(crc, (const uint8_t *)fedmote_encoder_input(&round->encoder), round->package.input_count);
}
