/* SPDX-License-Identifier: Apache-2.0
 *
 * Bodies of messages: the first byte is the kind. What decodes is encoded again, and that decodes to the same fields.
 */
#include "fuzz.h"
#include "wire.h"

enum { BODY = 1 << 16 };

static void compare(const struct fedmote_message *one, const struct fedmote_message *other) {
    for (uint32_t field = 0; field < FEDMOTE_FIELDS_END; field++) {
        must(fedmote_message_has(one, field) == fedmote_message_has(other, field), "a field came or went");
        if (!fedmote_message_has(one, field)) {
            continue;
        }
        must(one->number[field] == other->number[field], "a number changed");
        bool is_string = fedmote_field_rules[field].type != FEDMOTE_TYPE_UINT;
        must(!is_string || memcmp(one->bytes[field], other->bytes[field], one->number[field]) == 0, "a string changed");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || size > BODY) {
        return 0;
    }
    uint8_t *body = block_of(data + 1, size - 1);
    struct fedmote_message message;
    int32_t status = fedmote_decode(&message, data[0], body, (uint32_t)size - 1);
    must(status == FEDMOTE_OK || (status <= FEDMOTE_ERR_TRUNCATED && status >= FEDMOTE_ERR_FIELD_RANGE),
         "a status that SPEC.md does not name");
    if (status == FEDMOTE_OK) {
        uint8_t *again = block_of(NULL, size);
        int32_t length = fedmote_encode(&message, again, (uint32_t)size);
        must(length > 0 && (size_t)length < size, "what was decoded cannot be encoded in as many bytes");
        struct fedmote_message second;
        must(fedmote_decode(&second, data[0], again, (uint32_t)length) == FEDMOTE_OK, "our own body is refused");
        compare(&message, &second);
        free(again);
    }
    free(body);
    return 0;
}
