/* SPDX-License-Identifier: Apache-2.0
 *
 * Identity regions: the input is the map; magic, size and checksum in front of it are right. Where it is taken, all
 * texts end inside their room, and a group inside the region.
 */
#include "crc32.h"
#include "fedmote/fedmote.h"
#include "fuzz.h"
#include "masks.h"
#include "store.h"

enum { HEADER = 12, MAP = 4096 };

static void must_lie_in(const char *text, const char *room) {
    must(text == NULL || (text >= room && text < room + FEDMOTE_IDENTITY_TEXT_BYTES &&
                          memchr(text, 0, (size_t)(room + FEDMOTE_IDENTITY_TEXT_BYTES - text)) != NULL),
         "a text outside its room");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > MAP) {
        return 0;
    }
    uint8_t *region = block_of(NULL, HEADER + size);
    memcpy(region, "FMID", 4);
    fedmote_put_u32(region + 4, (uint32_t)size);
    fedmote_put_u32(region + 8, fedmote_crc32(0, data, (uint32_t)size));
    if (size > 0) {
        memcpy(region + HEADER, data, size);
    }
    char *text = (char *)block_of(NULL, FEDMOTE_IDENTITY_TEXT_BYTES);
    struct fedmote_identity identity;
    int32_t status = fedmote_identity_read(&identity, text, region, HEADER + (uint32_t)size);
    if (status == FEDMOTE_OK) {
        must(identity.id != NULL && identity.site != NULL && identity.link != NULL, "an identity without a name");
        must_lie_in(identity.id, text);
        must_lie_in(identity.site, text);
        must_lie_in(identity.username, text);
        must_lie_in(identity.password, text);
        const uint8_t *group = identity.masking;
        must(group == NULL || (group > region && FEDMOTE_MASKING_BYTES(group[FEDMOTE_MASKING_K]) <=
                                                     (size_t)(region + HEADER + size - group)),
             "a group beyond the region");
    }
    free(text);
    free(region);
    return 0;
}
