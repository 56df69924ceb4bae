/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages and their CBOR bodies (protocol/SPEC.md, section 1). One walker reads the generated tables of
 * fedmote_schema.h; there is no code per message. A decoded message borrows its strings from the body.
 */
#ifndef FEDMOTE_WIRE_H
#define FEDMOTE_WIRE_H

#include "fedmote/fedmote.h"

/* Any message. Field k is there where bit k of `present` is set, 32 to a word. */
struct fedmote_message {
    uint8_t kind;
    uint32_t present[FEDMOTE_FIELD_WORDS];
    uint32_t number[FEDMOTE_FIELDS_END]; /* value of an integer, length of a string */
    const uint8_t
        *bytes[FEDMOTE_FIELDS_END]; /* strings; borrowed; NULL while encoding leaves the bytes to the caller */
};

/* Empties `message` and gives it a kind. */
void fedmote_message_begin(struct fedmote_message *message, uint8_t kind);
void fedmote_message_number(struct fedmote_message *message, uint32_t field, uint32_t value);
void fedmote_message_string(struct fedmote_message *message, uint32_t field, const void *bytes, uint32_t size);

bool fedmote_message_has(const struct fedmote_message *message, uint32_t field);
/* An integer field, or `otherwise` where it is absent. */
uint32_t fedmote_message_get(const struct fedmote_message *message, uint32_t field, uint32_t otherwise);

/* Reads a body. Errors: exactly those of section 1, in its order; `message` is then undefined. Work is linear in
 * `size`. */
FEDMOTE_MUST_CHECK int32_t fedmote_decode(struct fedmote_message *message, uint8_t kind, const uint8_t *body,
                                          uint32_t size);

/* Writes the body, returns its size (> 0). A string whose pointer is NULL is left unwritten: if it is the last field,
 * the caller fills the last bytes of the body itself. Errors: UNKNOWN_KIND, MISSING_FIELD, FIELD_RANGE of our own
 * fields, BODY_TOO_LARGE where `capacity` does not hold it. */
FEDMOTE_MUST_CHECK int32_t fedmote_encode(const struct fedmote_message *message, uint8_t *body, uint32_t capacity);

/* Bytes and pieces of deterministic CBOR for blobs that are CBOR themselves. */
enum {
    FEDMOTE_CBOR_UINT = 0,
    FEDMOTE_CBOR_BYTES = 2,
    FEDMOTE_CBOR_TEXT = 3,
    FEDMOTE_CBOR_MAP = 5,
    FEDMOTE_CBOR_TAG = 6
};
/* Writes the head of an item at `out` (5 bytes at most), shortest form; returns its size. */
uint32_t fedmote_cbor_head(uint8_t *out, uint8_t major, uint32_t value);

/* A position inside CBOR bytes, and the next head read from there. */
struct fedmote_cbor {
    const uint8_t *bytes;
    uint32_t size;
    uint32_t position;
    uint8_t major;
    uint8_t info; /* low five bits of the first byte */
    uint64_t value;
};

/* Reads one head. Errors: TRUNCATED, MALFORMED, NOT_DETERMINISTIC. */
FEDMOTE_MUST_CHECK int32_t fedmote_cbor_read(struct fedmote_cbor *cbor);

#endif
