/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <string.h>

/* Bits of fields, 32 to a word. */
static bool has_bit(const uint32_t words[FEDMOTE_FIELD_WORDS], uint32_t field) {
    return (words[field / 32] >> field % 32 & 1) != 0;
}

static void set_bit(uint32_t words[FEDMOTE_FIELD_WORDS], uint32_t field) {
    words[field / 32] |= (uint32_t)1 << field % 32;
}

/* Whether every field of `required` is there. */
static bool is_complete(const struct fedmote_message *message, const struct fedmote_kind_rule *rule) {
    uint32_t missing = 0;
    for (uint32_t i = 0; i < FEDMOTE_FIELD_WORDS; i++) {
        missing |= rule->required[i] & ~message->present[i];
    }
    return missing == 0;
}

void fedmote_message_begin(struct fedmote_message *message, uint8_t kind) {
    message->kind = kind;
    memset(message->present, 0, sizeof message->present);
}

void fedmote_message_number(struct fedmote_message *message, uint32_t field, uint32_t value) {
    message->number[field] = value;
    message->bytes[field] = NULL;
    set_bit(message->present, field);
}

void fedmote_message_string(struct fedmote_message *message, uint32_t field, const void *bytes, uint32_t size) {
    message->number[field] = size;
    message->bytes[field] = bytes;
    set_bit(message->present, field);
}

bool fedmote_message_has(const struct fedmote_message *message, uint32_t field) {
    return has_bit(message->present, field);
}

uint32_t fedmote_message_get(const struct fedmote_message *message, uint32_t field, uint32_t otherwise) {
    return fedmote_message_has(message, field) ? message->number[field] : otherwise;
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */

enum { INFO_ONE_BYTE = 24, INFO_EIGHT_BYTES = 27, INFO_INDEFINITE = 31, MAJOR_ARRAY = 4, MAJOR_OTHER = 7 };

/* Whether `value` would have fitted a shorter form than the one of `info`. */
static bool is_longer_than_needed(uint8_t info, uint64_t value) {
    static const uint64_t least[4] = {24, 0x100, 0x10000, 0x100000000};
    return value < least[info - INFO_ONE_BYTE];
}

int32_t fedmote_cbor_read(struct fedmote_cbor *cbor) {
    if (cbor->position >= cbor->size) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    uint8_t first = cbor->bytes[cbor->position++];
    cbor->major = first >> 5;
    cbor->info = first & 31;
    cbor->value = cbor->info;
    if (cbor->info < INFO_ONE_BYTE) {
        return FEDMOTE_OK;
    }
    if (cbor->info > INFO_EIGHT_BYTES) {
        bool has_indefinite_form = cbor->major >= FEDMOTE_CBOR_BYTES && cbor->major <= FEDMOTE_CBOR_MAP;
        return cbor->info == INFO_INDEFINITE && has_indefinite_form ? FEDMOTE_ERR_NOT_DETERMINISTIC
                                                                    : FEDMOTE_ERR_MALFORMED;
    }
    uint32_t length = 1U << (cbor->info - INFO_ONE_BYTE);
    if (cbor->size - cbor->position < length) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    cbor->value = 0;
    for (uint32_t i = 0; i < length; i++) {
        cbor->value = cbor->value << 8 | cbor->bytes[cbor->position++];
    }
    if (cbor->major == MAJOR_OTHER) { /* floats keep their width; a simple value of two bytes begins at 32 */
        return cbor->info == INFO_ONE_BYTE && cbor->value < 32 ? FEDMOTE_ERR_MALFORMED : FEDMOTE_OK;
    }
    return is_longer_than_needed(cbor->info, cbor->value) ? FEDMOTE_ERR_NOT_DETERMINISTIC : FEDMOTE_OK;
}

/* Passes over the bytes of a string whose head was just read. */
static int32_t skip_string(struct fedmote_cbor *cbor) {
    if (cbor->size - cbor->position < cbor->value) {
        return FEDMOTE_ERR_TRUNCATED;
    }
    cbor->position += (uint32_t)cbor->value;
    return FEDMOTE_OK;
}

/* Passes over one item of any form. In place of recursion it counts what is still missing on each level, so that a
 * hostile body can neither exhaust the stack nor make it loop: every turn reads at least one byte. */
static int32_t skip_item(struct fedmote_cbor *cbor) {
    uint64_t missing[FEDMOTE_LIMIT_MAP_DEPTH + 1] = {1};
    uint32_t depth = 0;
    for (;;) {
        while (missing[depth] == 0) {
            if (depth == 0) {
                return FEDMOTE_OK;
            }
            depth--;
        }
        missing[depth]--;
        int32_t status = fedmote_cbor_read(cbor);
        if (status != FEDMOTE_OK) {
            return status;
        }
        uint64_t children = 0;
        if (cbor->major == FEDMOTE_CBOR_BYTES || cbor->major == FEDMOTE_CBOR_TEXT) {
            status = skip_string(cbor);
        } else if (cbor->major == MAJOR_ARRAY || cbor->major == FEDMOTE_CBOR_MAP) {
            children = cbor->value;
            if (children > cbor->size - cbor->position) { /* each takes a byte or more; also keeps `* 2` in range */
                status = FEDMOTE_ERR_TRUNCATED;
            }
            children *= cbor->major == FEDMOTE_CBOR_MAP ? 2 : 1;
        } else if (cbor->major == FEDMOTE_CBOR_TAG) {
            children = 1;
        }
        if (status != FEDMOTE_OK) {
            return status;
        }
        bool is_container = cbor->major >= MAJOR_ARRAY && cbor->major <= FEDMOTE_CBOR_TAG;
        if (is_container) {
            if (depth == FEDMOTE_LIMIT_MAP_DEPTH) {
                return FEDMOTE_ERR_MALFORMED;
            }
            missing[++depth] = children;
        }
    }
}

/* Number of bytes behind the first byte of a UTF-8 letter, -1 where no letter begins so. `low` and `high` bound the
 * second byte: they exclude overlong forms, surrogates and what lies beyond U+10FFFF (RFC 3629, section 4). */
static int32_t utf8_tail(uint8_t first, uint8_t *low, uint8_t *high) {
    *low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    *high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return first < 0x80 ? 0 : first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
}

static bool is_utf8(const uint8_t *text, uint32_t size) {
    uint32_t i = 0;
    while (i < size) {
        uint8_t low = 0;
        uint8_t high = 0;
        int32_t tail = utf8_tail(text[i++], &low, &high);
        if (tail < 0 || (uint32_t)tail > size - i) {
            return false;
        }
        for (; tail > 0; tail--, i++, low = 0x80, high = 0xBF) {
            if (text[i] < low || text[i] > high) {
                return false;
            }
        }
    }
    return true;
}

/* Reads the value of a field that the kind lists. */
static int32_t read_field(struct fedmote_message *message, uint32_t field, struct fedmote_cbor *cbor) {
    const struct fedmote_field_rule *rule = &fedmote_field_rules[field];
    static const uint8_t majors[] = {0, FEDMOTE_CBOR_UINT, FEDMOTE_CBOR_BYTES, FEDMOTE_CBOR_TEXT};
    int32_t status = fedmote_cbor_read(cbor);
    if (status != FEDMOTE_OK) {
        return status;
    }
    if (cbor->major != majors[rule->type]) {
        return FEDMOTE_ERR_FIELD_TYPE;
    }
    const uint8_t *bytes = NULL;
    if (rule->type != FEDMOTE_TYPE_UINT) {
        bytes = cbor->bytes + cbor->position;
        status = skip_string(cbor);
        if (status != FEDMOTE_OK) {
            return status;
        }
    }
    if (cbor->value < rule->low || cbor->value > rule->high) {
        return FEDMOTE_ERR_FIELD_RANGE;
    }
    if (rule->type == FEDMOTE_TYPE_TEXT && !is_utf8(bytes, (uint32_t)cbor->value)) {
        return FEDMOTE_ERR_MALFORMED;
    }
    message->number[field] = (uint32_t)cbor->value;
    message->bytes[field] = bytes;
    set_bit(message->present, field);
    return FEDMOTE_OK;
}

int32_t fedmote_decode(struct fedmote_message *message, uint8_t kind, const uint8_t *body, uint32_t size) {
    fedmote_message_begin(message, kind);
    if (kind == 0 || kind >= FEDMOTE_KINDS_END) {
        return FEDMOTE_ERR_UNKNOWN_KIND;
    }
    const struct fedmote_kind_rule *rule = &fedmote_kind_rules[kind];
    struct fedmote_cbor cbor = {.bytes = body, .size = size};
    int32_t status = fedmote_cbor_read(&cbor);
    if (status == FEDMOTE_OK && cbor.major != FEDMOTE_CBOR_MAP) {
        status = FEDMOTE_ERR_MALFORMED;
    }
    uint64_t pairs = cbor.value;
    uint64_t previous = 0;
    for (uint64_t i = 0; status == FEDMOTE_OK && i < pairs; i++) { /* every turn reads a byte or ends: linear in size */
        status = fedmote_cbor_read(&cbor);
        if (status != FEDMOTE_OK) {
            return status;
        }
        uint64_t key = cbor.value;
        if (cbor.major != FEDMOTE_CBOR_UINT) {
            return FEDMOTE_ERR_MALFORMED;
        }
        if (i > 0 && key <= previous) {
            return key == previous ? FEDMOTE_ERR_DUPLICATE_FIELD : FEDMOTE_ERR_NOT_DETERMINISTIC;
        }
        previous = key;
        bool is_listed = key < FEDMOTE_FIELDS_END && has_bit(rule->allowed, (uint32_t)key);
        status = is_listed ? read_field(message, (uint32_t)key, &cbor) : skip_item(&cbor);
    }
    if (status == FEDMOTE_OK && cbor.position != size) {
        return FEDMOTE_ERR_TRAILING;
    }
    if (status == FEDMOTE_OK && !is_complete(message, rule)) {
        return FEDMOTE_ERR_MISSING_FIELD;
    }
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */

static uint32_t head_length(uint32_t value) {
    return value < INFO_ONE_BYTE ? 1 : value < 0x100 ? 2 : value < 0x10000 ? 3 : 5;
}

uint32_t fedmote_cbor_head(uint8_t *out, uint8_t major, uint32_t value) {
    uint32_t length = head_length(value);
    uint8_t info = length == 1 ? (uint8_t)value : length == 2 ? 24 : length == 3 ? 25 : 26;
    out[0] = (uint8_t)(major << 5 | info);
    for (uint32_t i = 1; i < length; i++) {
        out[i] = (uint8_t)(value >> 8 * (length - 1 - i));
    }
    return length;
}

static int32_t check_own(const struct fedmote_message *message) {
    if (message->kind == 0 || message->kind >= FEDMOTE_KINDS_END) {
        return FEDMOTE_ERR_UNKNOWN_KIND;
    }
    const struct fedmote_kind_rule *rule = &fedmote_kind_rules[message->kind];
    if (!is_complete(message, rule)) {
        return FEDMOTE_ERR_MISSING_FIELD;
    }
    for (uint32_t field = 0; field < FEDMOTE_FIELDS_END; field++) {
        if (fedmote_message_has(message, field)) {
            uint32_t number = message->number[field];
            if (!has_bit(rule->allowed, field) || number < fedmote_field_rules[field].low ||
                number > fedmote_field_rules[field].high) {
                return FEDMOTE_ERR_FIELD_RANGE;
            }
        }
    }
    return FEDMOTE_OK;
}

int32_t fedmote_encode(const struct fedmote_message *message, uint8_t *body, uint32_t capacity) {
    int32_t status = check_own(message);
    if (status != FEDMOTE_OK) {
        return status;
    }
    uint32_t pairs = 0;
    for (uint32_t field = 0; field < FEDMOTE_FIELDS_END; field++) {
        pairs += fedmote_message_has(message, field) ? 1U : 0U;
    }
    uint32_t size = head_length(pairs);
    if (capacity < size) {
        return FEDMOTE_ERR_BODY_TOO_LARGE;
    }
    (void)fedmote_cbor_head(body, FEDMOTE_CBOR_MAP, pairs);
    for (uint32_t field = 0; field < FEDMOTE_FIELDS_END; field++) {
        if (!fedmote_message_has(message, field)) {
            continue;
        }
        uint32_t number = message->number[field];
        uint8_t type = fedmote_field_rules[field].type;
        uint32_t tail = type == FEDMOTE_TYPE_UINT ? 0 : number;
        if (capacity - size < head_length(field) + head_length(number) + tail) {
            return FEDMOTE_ERR_BODY_TOO_LARGE;
        }
        uint8_t major = type == FEDMOTE_TYPE_UINT    ? FEDMOTE_CBOR_UINT
                        : type == FEDMOTE_TYPE_BYTES ? FEDMOTE_CBOR_BYTES
                                                     : FEDMOTE_CBOR_TEXT;
        size += fedmote_cbor_head(body + size, FEDMOTE_CBOR_UINT, field);
        size += fedmote_cbor_head(body + size, major, number);
        if (tail > 0 && message->bytes[field] != NULL) {
            memcpy(body + size, message->bytes[field], tail);
        }
        size += tail;
    }
    return (int32_t)size;
}
