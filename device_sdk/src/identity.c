/* SPDX-License-Identifier: Apache-2.0
 *
 * The identity region of a board's flash (protocol/SPEC.md, section 8): magic, size, CRC-32, and a CBOR map with its
 * keys in order, all of them. The region is flashed by whoever owns the board; it is checked all the same, as a part
 * that was never flashed must say so rather than run with noise for a name.
 */
#include <string.h>

#include "crc32.h"
#include "little_endian.h"
#include "wire.h"

enum { HEADER = 12, LINKS = 2 };

enum key {
    KEY_ID = 1,
    KEY_SITE = 2,
    KEY_LINK = 3,
    KEY_USERNAME = 4,
    KEY_PASSWORD = 5,
    KEY_IS_SENDING_SAMPLES = 6,
    KEY_KEEP_ALIVE_S = 7,
    KEYS_END = 8
};

/* Reads the next pair's key, which must be `key`, and the head of its value, which must be of type `major`. */
static int32_t read_pair(struct fedmote_cbor *cbor, uint64_t key, uint8_t major) {
    int32_t status = fedmote_cbor_read(cbor);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (cbor->major != FEDMOTE_CBOR_UINT || cbor->value != key) {
        return FEDMOTE_ERR_MISSING_FIELD;
    }
    status = fedmote_cbor_read(cbor);
    if (status == FEDMOTE_OK && cbor->major != major) {
        status = FEDMOTE_ERR_FIELD_TYPE;
    }
    return status;
}

static int32_t read_number(struct fedmote_cbor *cbor, uint64_t key, uint32_t high, uint32_t *number) {
    int32_t status = read_pair(cbor, key, FEDMOTE_CBOR_UINT);
    if (status == FEDMOTE_OK && cbor->value > high) {
        status = FEDMOTE_ERR_FIELD_RANGE;
    }
    *number = (uint32_t)cbor->value;
    return status;
}

/* Copies a text of at most `high` bytes and its zero to *to, which moves behind it. */
static int32_t read_text(struct fedmote_cbor *cbor, uint64_t key, uint32_t high, char **to, const char **text) {
    int32_t status = read_pair(cbor, key, FEDMOTE_CBOR_TEXT);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (cbor->value > high) {
        return FEDMOTE_ERR_FIELD_RANGE;
    }
    uint32_t size = (uint32_t)cbor->value;
    if (cbor->size - cbor->position < size) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    memcpy(*to, cbor->bytes + cbor->position, size);
    (*to)[size] = 0;
    *text = *to;
    *to += size + 1;
    cbor->position += size;
    return FEDMOTE_OK;
}

static int32_t read_map(struct fedmote_identity *identity, char *text, struct fedmote_cbor *cbor) {
    const struct fedmote_link *const links[LINKS] = {&fedmote_serial_link, &fedmote_mqtt_link};
    uint32_t link = 0;
    uint32_t is_sending = 0;
    uint32_t keep_alive_s = 0;
    int32_t status = fedmote_cbor_read(cbor);
    if (status == FEDMOTE_OK && (cbor->major != FEDMOTE_CBOR_MAP || cbor->value != KEYS_END - 1)) {
        status = FEDMOTE_ERR_MISSING_FIELD;
    }
    if (status == FEDMOTE_OK) {
        status = read_text(cbor, KEY_ID, FEDMOTE_LIMIT_IDENTIFIER, &text, &identity->id);
    }
    if (status == FEDMOTE_OK) {
        status = read_text(cbor, KEY_SITE, FEDMOTE_LIMIT_IDENTIFIER, &text, &identity->site);
    }
    if (status == FEDMOTE_OK) {
        status = read_number(cbor, KEY_LINK, LINKS - 1, &link);
    }
    if (status == FEDMOTE_OK) {
        status = read_text(cbor, KEY_USERNAME, FEDMOTE_LIMIT_TEXT, &text, &identity->username);
    }
    if (status == FEDMOTE_OK) {
        status = read_text(cbor, KEY_PASSWORD, FEDMOTE_LIMIT_TEXT, &text, &identity->password);
    }
    if (status == FEDMOTE_OK) {
        status = read_number(cbor, KEY_IS_SENDING_SAMPLES, 1, &is_sending);
    }
    if (status == FEDMOTE_OK) {
        status = read_number(cbor, KEY_KEEP_ALIVE_S, UINT16_MAX, &keep_alive_s);
    }
    if (status == FEDMOTE_OK && cbor->position != cbor->size) {
        status = FEDMOTE_ERR_TRAILING;
    }
    if (status == FEDMOTE_OK) {
        identity->link = links[link];
        identity->is_sending_samples = (uint8_t)is_sending;
        identity->keep_alive_s = (uint16_t)keep_alive_s;
    }
    return status;
}

int32_t fedmote_identity_read(struct fedmote_identity *identity, char text[FEDMOTE_IDENTITY_TEXT_BYTES],
                              const uint8_t *region, uint32_t region_bytes) {
    *identity = (struct fedmote_identity){0};
    if (region_bytes < HEADER) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    if (memcmp(region, "FMID", 4) != 0) {
        return FEDMOTE_ERR_MALFORMED;
    }
    uint32_t size = fedmote_load_u32(region + 4);
    if (size > region_bytes - HEADER) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    if (fedmote_crc32(0, region + HEADER, size) != fedmote_load_u32(region + 8)) {
        return FEDMOTE_ERR_CRC;
    }
    struct fedmote_cbor cbor = {.bytes = region + HEADER, .size = size};
    int32_t status = read_map(identity, text, &cbor);
    if (status == FEDMOTE_OK && identity->username[0] == 0) {
        identity->username = NULL; /* the id stands for it */
    }
    if (status == FEDMOTE_OK && identity->password[0] == 0) {
        identity->password = NULL;
    }
    return status;
}
