/* SPDX-License-Identifier: Apache-2.0
 *
 * The identity region of a board's flash (protocol/SPEC.md, section 8): magic, size, CRC-32, and a CBOR map with its
 * keys in order, of which the last ones, cryptographic keys, may be missing. The region is flashed by whoever owns the
 * board; it is checked all the same, as a part that was never flashed must say so rather than run with noise for a
 * name.
 */
#include <string.h>

#include "crc32.h"
#include "little_endian.h"
#include "masks.h"
#include "wire.h"

enum { HEADER = 12, LINKS = 2, REQUIRED = 7, PAIRS = 11 };

/* Keys of the map; the rule of key k is RULES[k - 1]. */
enum key {
    KEY_ID = 1,
    KEY_SITE = 2,
    KEY_LINK = 3,
    KEY_USERNAME = 4,
    KEY_PASSWORD = 5,
    KEY_IS_SENDING_SAMPLES = 6,
    KEY_KEEP_ALIVE_S = 7,
    KEY_KEY = 8,
    KEY_CELL_KEY = 9,
    KEY_VERIFY_KEY = 10,
    KEY_MASKING = 11
};

/* Type and bounds: of a number, or of the bytes of a string. */
struct rule {
    uint16_t high;
    uint8_t low, major;
};

static const struct rule RULES[PAIRS] = {
    {FEDMOTE_LIMIT_IDENTIFIER, 0, FEDMOTE_CBOR_TEXT},
    {FEDMOTE_LIMIT_IDENTIFIER, 0, FEDMOTE_CBOR_TEXT},
    {LINKS - 1, 0, FEDMOTE_CBOR_UINT},
    {FEDMOTE_LIMIT_TEXT, 0, FEDMOTE_CBOR_TEXT},
    {FEDMOTE_LIMIT_TEXT, 0, FEDMOTE_CBOR_TEXT},
    {1, 0, FEDMOTE_CBOR_UINT},
    {UINT16_MAX, 0, FEDMOTE_CBOR_UINT},
    {32, 32, FEDMOTE_CBOR_BYTES},
    {32, 32, FEDMOTE_CBOR_BYTES},
    {32, 32, FEDMOTE_CBOR_BYTES},
    {FEDMOTE_MASKING_BYTES(FEDMOTE_MASKING_NEIGHBOURS), FEDMOTE_MASKING_BYTES(2), FEDMOTE_CBOR_BYTES},
};

/* The values of the map by key: numbers, or lengths with the bytes in the region. */
struct values {
    uint32_t number[PAIRS + 1];
    const uint8_t *bytes[PAIRS + 1];
};

/* Reads the next pair, behind that of *key, which becomes its key. */
static int32_t read_pair(struct fedmote_cbor *cbor, uint32_t *key, struct values *values) {
    int32_t status = fedmote_cbor_read(cbor);
    if (status != FEDMOTE_OK) {
        return status;
    }
    const uint32_t last = *key < REQUIRED ? *key + 1 : PAIRS; /* the required keys come one after the other */
    if (cbor->major != FEDMOTE_CBOR_UINT || cbor->value <= *key || cbor->value > last) {
        return FEDMOTE_ERR_MISSING_FIELD;
    }
    *key = (uint32_t)cbor->value;
    const struct rule *rule = &RULES[*key - 1];
    status = fedmote_cbor_read(cbor);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (cbor->major != rule->major) {
        return FEDMOTE_ERR_FIELD_TYPE;
    }
    if (cbor->value < rule->low || cbor->value > rule->high) {
        return FEDMOTE_ERR_FIELD_RANGE;
    }
    uint32_t value = (uint32_t)cbor->value;
    values->number[*key] = value;
    values->bytes[*key] = cbor->bytes + cbor->position;
    if (rule->major != FEDMOTE_CBOR_UINT) {
        if (cbor->size - cbor->position < value) {
            return FEDMOTE_ERR_TRUNCATED;
        }
        cbor->position += value;
    }
    return FEDMOTE_OK;
}

static int32_t read_map(struct fedmote_cbor *cbor, struct values *values) {
    int32_t status = fedmote_cbor_read(cbor);
    uint32_t pairs = (uint32_t)cbor->value;
    if (status == FEDMOTE_OK && (cbor->major != FEDMOTE_CBOR_MAP || cbor->value < REQUIRED || cbor->value > PAIRS)) {
        status = FEDMOTE_ERR_MISSING_FIELD;
    }
    for (uint32_t key = 0; status == FEDMOTE_OK && pairs > 0; pairs--) {
        status = read_pair(cbor, &key, values);
    }
    return status == FEDMOTE_OK && cbor->position != cbor->size ? FEDMOTE_ERR_TRAILING : status;
}

/* Copies a text and its zero to *to, which moves behind it. */
static const char *take_text(const struct values *values, uint32_t key, char **to) {
    char *text = *to;
    uint32_t size = values->number[key];
    memcpy(text, values->bytes[key], size);
    text[size] = 0;
    *to += size + 1;
    return text;
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
    struct values values = {{0}, {NULL}};
    int32_t status = read_map(&cbor, &values);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (!values.bytes[KEY_KEY] && values.bytes[KEY_CELL_KEY]) {
        return FEDMOTE_ERR_MISSING_FIELD; /* it would speak readably, as if it had none */
    }
    const uint8_t *masking = values.bytes[KEY_MASKING];
    if (masking && values.number[KEY_MASKING] != FEDMOTE_MASKING_BYTES(masking[FEDMOTE_MASKING_K])) {
        return FEDMOTE_ERR_FIELD_RANGE;
    }
    const struct fedmote_link *const links[LINKS] = {&fedmote_serial_link, &fedmote_mqtt_link};
    identity->id = take_text(&values, KEY_ID, &text);
    identity->site = take_text(&values, KEY_SITE, &text);
    identity->link = links[values.number[KEY_LINK]];
    /* An empty name or password is none: the id stands for the name. */
    identity->username = values.number[KEY_USERNAME] > 0 ? take_text(&values, KEY_USERNAME, &text) : NULL;
    identity->password = values.number[KEY_PASSWORD] > 0 ? take_text(&values, KEY_PASSWORD, &text) : NULL;
    identity->is_sending_samples = (uint8_t)values.number[KEY_IS_SENDING_SAMPLES];
    identity->keep_alive_s = (uint16_t)values.number[KEY_KEEP_ALIVE_S];
    identity->key = values.bytes[KEY_KEY];
    identity->cell_key = values.bytes[KEY_CELL_KEY];
    identity->verify_key = values.bytes[KEY_VERIFY_KEY];
    identity->masking = masking;
    return FEDMOTE_OK;
}
