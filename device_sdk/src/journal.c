/* SPDX-License-Identifier: Apache-2.0
 *
 * An append-only log in one of two regions; when it is full, what still counts goes to the other one, whose head is
 * written last: the valid head of the highest generation names the region that is read. So a cut at any moment leaves
 * one whole log.
 *
 *     region    head | record | record | ...          head, and the beginning of every record: 16 bytes
 *     boot      kind "FMJB", boot, 0, CRC-32 of the 12 bytes
 *     region    kind "FMJR", boot, generation, CRC-32
 *     update    kind "FMJU", boot, bytes of the content, CRC-32 | content | its seal, 8 bytes | 8 bytes until it is
 * dropped
 *     key       kind "FMJK", and as an update
 *
 * A record is valid by its beginning, which is durable before anything behind it is written; what a cut left of one
 * that is not is stepped over, 8 bytes at a time, to the first unit that is erased, and so is everything else.
 */
#include "journal.h"

#include <stddef.h>
#include <string.h>

#include "client.h"
#include "crc32.h"
#include "little_endian.h"
#include "update.h"

enum {
    UNIT = FEDMOTE_FLASH_UNIT,
    HEAD = 16,
    END = 2 * UNIT, /* of an update: the seal and the mark that drops it */
    PIECE = 64,
    SECRET = 32, /* a key; behind it in its record what it takes the place of, 4 bytes, and 4 of zero */
    KEY = SECRET + UNIT,
    KEY_RECORD = HEAD + KEY + END,
    TRIES = 2,  /* of each way to count a boot */
    BOOTS = 16, /* that a region has room for beside the longest update that it takes */
    FIRST_MASK =
        0xFFFFFF, /* a new journal begins at random below, so that two boards with one name can be told apart */
};

/* Phases of keeping an update. */
enum phase { REST, BEGIN = FEDMOTE_LOG_BEGIN, ERASE, REGION, RECORD, CONTENT, BLOB, SEAL };

/* Kinds, as numbers of four letters. */
#define KIND_REGION 0x524A4D46U
#define KIND_BOOT 0x424A4D46U
#define KIND_UPDATE 0x554A4D46U
#define KIND_KEY 0x4B4A4D46U

#define PLAN_BYTES (offsetof(struct fedmote_plan, training.is_bias_only) + 1U)

/* The content of an update's record, in front of the blob. */
struct content {
    struct fedmote_results results;
    uint32_t sample_count, arena_used_bytes;
    uint32_t device; /* CRC-32 of its id: the draws depend on it */
    uint8_t plan[(PLAN_BYTES + UNIT - 1U) / UNIT * UNIT];
};

typedef char fedmote_content_is_made_of_units[sizeof(struct content) % UNIT == 0 ? 1 : -1];

struct head {
    uint32_t kind, boot, size;
};

static const uint8_t *base_of(const struct fedmote_client *client, uint32_t region) {
    return client->port->journal_base(client->port->context, region);
}

static uint32_t room(const struct fedmote_client *client) { return client->port->journal_bytes; }

static uint32_t whole_units(uint32_t bytes) { return (bytes + UNIT - 1U) & ~(uint32_t)(UNIT - 1U); }

/* Bytes of a record with a content of `size`. */
static uint32_t extent(uint32_t size) { return size == 0U ? HEAD : HEAD + whole_units(size) + END; }

static bool read_head(const uint8_t *bytes, struct head *head) {
    *head = (struct head){fedmote_load_u32(bytes), fedmote_load_u32(bytes + 4), fedmote_load_u32(bytes + 8)};
    return fedmote_crc32(0, bytes, 12) == fedmote_load_u32(bytes + 12);
}

/* Writes and reads back. */
static bool write(const struct fedmote_client *client, uint32_t region, uint32_t offset, const uint8_t *bytes,
                  uint32_t size) {
    const struct fedmote_port *port = client->port;
    return port->journal_write(port->context, region, offset, bytes, size) >= 0 &&
           memcmp(base_of(client, region) + offset, bytes, size) == 0;
}

static bool write_head(const struct fedmote_client *client, uint32_t region, uint32_t offset, uint32_t kind,
                       uint32_t size) {
    uint8_t bytes[HEAD];
    fedmote_put_u32(bytes, kind);
    fedmote_put_u32(bytes + 4, client->line.boot);
    fedmote_put_u32(bytes + 8, size);
    fedmote_put_u32(bytes + 12, fedmote_crc32(0, bytes, 12));
    return write(client, region, offset, bytes, sizeof bytes);
}

/* The generation of a region, 0 where it has none. */
static uint32_t generation_of(const struct fedmote_client *client, uint32_t region) {
    struct head head;
    const bool is_valid = read_head(base_of(client, region), &head) && head.kind == KIND_REGION;
    return is_valid ? head.size : 0U;
}

/* Whether a record with a content is sealed and was not dropped. */
static bool is_kept(const uint8_t *record, uint32_t size) {
    const uint8_t *seal = record + HEAD + whole_units(size);
    return fedmote_load_u32(seal) == ~fedmote_load_u32(seal + 4) && fedmote_is_erased(seal + UNIT);
}

/* What a key takes the place of: the key of one board's identity. A board that is given another identity has left it
 * behind. */
static uint32_t origin_of(const struct fedmote_client *client) {
    return fedmote_crc32(fedmote_client_device(client), client->identity.key, SECRET);
}

/* The record of the key in use, in the region that is written; NULL: the identity's own is. */
static const uint8_t *key_record(const struct fedmote_client *client) {
    const uintptr_t at = (uintptr_t)client->identity.key - (uintptr_t)base_of(client, client->log.region);
    return at < room(client) ? client->identity.key - HEAD : NULL;
}

/* Where the first record is that is copied behind the head of a region and behind the key. */
static uint32_t front(const struct fedmote_client *client) {
    return HEAD + (key_record(client) != NULL ? (uint32_t)KEY_RECORD : 0U);
}

/* ---- two regions --------------------------------------------------------------------------------------------------
 */

/* Only once for each use, although an update that is acknowledged meanwhile ends the use before it has begun. */
static bool erase_other(struct fedmote_client *client) {
    const struct fedmote_port *port = client->port;
    if (!client->log.is_erased) {
        client->log.is_erased = port->journal_erase(port->context, 1U - client->log.region) >= 0;
    }
    return client->log.is_erased;
}

/* Copies a record into the other region, up to its seal. */
static bool copy(struct fedmote_client *client, uint32_t to, const uint8_t *record, uint32_t bytes) {
    uint8_t piece[PIECE];
    client->log.is_erased = false;
    for (uint32_t done = 0; done < bytes; done += PIECE) {
        const uint32_t count = bytes - done < PIECE ? bytes - done : PIECE;
        memcpy(piece, record + done, count);
        if (!write(client, 1U - client->log.region, to + done, piece, count)) {
            return false;
        }
    }
    return true;
}

/* The erased region becomes the one that is written, with the key in it, from `tail` on. */
static bool begin_other(struct fedmote_client *client, uint32_t tail) {
    struct fedmote_log *log = &client->log;
    const uint32_t other = 1U - log->region;
    const uint8_t *key = key_record(client);
    log->is_erased = false;
    if ((key != NULL && !copy(client, HEAD, key, KEY_RECORD - UNIT)) ||
        !write_head(client, other, 0, KIND_REGION, generation_of(client, log->region) + 1U)) {
        return false;
    }
    log->region = (uint8_t)other;
    log->tail = tail;
    if (key != NULL) {
        client->identity.key = base_of(client, other) + 2 * HEAD;
    }
    return true;
}

/* Goes on in the other region, with what still counts. */
static bool change_region(struct fedmote_client *client) {
    struct fedmote_log *log = &client->log;
    const uint8_t *update = base_of(client, log->region) + log->update;
    const uint32_t to = front(client);
    uint32_t bytes = 0;
    if (log->update != 0U) {
        struct head head;
        (void)read_head(update, &head);
        bytes = extent(head.size);
    }
    if (!erase_other(client) || (bytes > 0U && !copy(client, to, update, bytes - UNIT)) ||
        !begin_other(client, to + bytes)) {
        return false;
    }
    log->update = bytes > 0U ? to : 0U;
    return true;
}

/* ---- booting ------------------------------------------------------------------------------------------------------
 */

/* Whether the record is that of a key which takes the place of `origin`; it has `left` bytes, a head among them. */
static bool is_key(const uint8_t *record, uint32_t left, uint32_t origin) {
    const uint8_t *content = record + HEAD;
    return left >= KEY_RECORD && is_kept(record, KEY) &&
           fedmote_crc32(0, content, KEY) == fedmote_load_u32(content + KEY) &&
           fedmote_load_u32(content + SECRET) == origin;
}

/* Reads the region from its beginning: the highest boot, the newest update and key, the end. */
static void scan(struct fedmote_client *client) {
    struct fedmote_log *log = &client->log;
    const bool has_key = client->identity.key != NULL;
    const uint32_t origin = has_key ? origin_of(client) : 0U;
    const uint8_t *bytes = base_of(client, log->region);
    uint32_t at = 0;
    while (at + UNIT <= room(client)) {
        struct head head;
        const uint32_t left = room(client) - at;
        uint32_t size = UNIT;
        if (left >= HEAD && read_head(bytes + at, &head) && (head.kind != KIND_UPDATE || head.size <= left - HEAD)) {
            const bool is_update = head.kind == KIND_UPDATE;
            size = head.kind == KIND_KEY ? (uint32_t)KEY_RECORD : extent(is_update ? head.size : 0U);
            client->line.boot = head.boot > client->line.boot ? head.boot : client->line.boot;
            if (is_update) {
                log->update = size <= left && is_kept(bytes + at, head.size) ? at : 0U;
            } else if (head.kind == KIND_KEY && has_key && is_key(bytes + at, left, origin)) {
                client->identity.key = bytes + at + HEAD;
            }
        } else if (fedmote_is_erased(bytes + at)) {
            at += UNIT;
            continue;
        }
        at += size;
        log->tail = at;
    }
}

/* Writes that this boot is; what a failed write has touched is passed over. */
static bool append_boot(struct fedmote_client *client) {
    struct fedmote_log *log = &client->log;
    const uint32_t at = log->tail;
    if (at > room(client) || room(client) - at < HEAD) {
        return false;
    }
    log->tail = at + HEAD;
    return write_head(client, log->region, at, KIND_BOOT, 0);
}

static bool count_boot(struct fedmote_client *client) {
    bool is_counted = false;
    for (uint32_t i = 0; i < 2U * TRIES && !is_counted; i++) {
        is_counted = i < TRIES ? append_boot(client) : change_region(client);
    }
    return is_counted;
}

static void lose(struct fedmote_client *client, int32_t status) {
    client->log.phase = REST;
    client->log.update = 0;
    fedmote_client_note(client, FEDMOTE_EVENT_JOURNAL_LOST, status);
}

static void open(struct fedmote_client *client) {
    struct fedmote_log *log = &client->log;
    const uint32_t random = client->line.boot;
    if (base_of(client, 0) == NULL) {
        return;
    }
    log->region = generation_of(client, 1) >= generation_of(client, 0) ? 1U : 0U;
    if (generation_of(client, log->region) > 0U) {
        client->line.boot = 0;
        scan(client);
    } else { /* a new journal: region 0 */
        client->line.boot &= FIRST_MASK;
        log->tail = room(client);
    }
    client->line.is_boot_counted = ++client->line.boot != 0U && count_boot(client);
    if (!client->line.is_boot_counted) {
        client->line.boot = random;
        lose(client, FEDMOTE_ERR_SLOT_IO);
    }
}

/* ---- keeping an update --------------------------------------------------------------------------------------------
 */

static bool has_room(const struct fedmote_client *client, uint32_t bytes) {
    return client->log.tail <= room(client) && room(client) - client->log.tail >= bytes;
}

static uint32_t content_bytes(const struct fedmote_client *client) {
    return (uint32_t)sizeof(struct content) + client->update.size;
}

/* No flash operation yet: is there room, here or in the other region? A region keeps some for the boots to come. */
static bool begin(struct fedmote_client *client) {
    const uint32_t bytes = extent(content_bytes(client));
    client->log.update = 0;
    if (!client->line.is_boot_counted) { /* it was told at the boot */
        client->log.phase = REST;
    } else if (front(client) + bytes + BOOTS * HEAD > room(client)) {
        lose(client, FEDMOTE_ERR_SLOT);
    } else {
        client->log.phase = has_room(client, bytes) ? RECORD : ERASE;
    }
    return true;
}

static bool erase(struct fedmote_client *client) {
    client->log.phase = REGION;
    return erase_other(client);
}

static bool write_region(struct fedmote_client *client) {
    client->log.phase = RECORD;
    return begin_other(client, front(client));
}

static bool write_record(struct fedmote_client *client) {
    struct fedmote_log *log = &client->log;
    log->phase = CONTENT;
    log->update = log->tail;
    log->tail += extent(content_bytes(client));
    return write_head(client, log->region, log->update, KIND_UPDATE, content_bytes(client));
}

static bool write_content(struct fedmote_client *client) {
    struct fedmote_round *round = &client->round;
    struct content content = {
        .results = round->results,
        .sample_count = round->sample_count,
        .arena_used_bytes = fedmote_round_arena_used(round),
        .device = fedmote_client_device(client),
    };
    memcpy(content.plan, &round->plan, PLAN_BYTES);
    client->log.phase = BLOB;
    round->cursor = 0; /* the round rests: its cursor and checksum are those of the blob */
    round->crc = fedmote_crc32(0, (const uint8_t *)&content, sizeof content);
    return write(client, client->log.region, client->log.update + HEAD, (const uint8_t *)&content, sizeof content);
}

static bool write_blob(struct fedmote_client *client) {
    struct fedmote_round *round = &client->round;
    uint8_t piece[PIECE] = {0};
    const uint32_t left = client->update.size - round->cursor;
    const uint32_t count = left < PIECE ? left : PIECE;
    const uint32_t at = client->log.update + HEAD + (uint32_t)sizeof(struct content) + round->cursor;
    fedmote_update_read(round, round->cursor, piece, count);
    round->crc = fedmote_crc32(round->crc, piece, count);
    round->cursor += count;
    if (round->cursor == client->update.size) {
        client->log.phase = SEAL;
    }
    return write(client, client->log.region, at, piece, whole_units(count));
}

static bool write_seal(struct fedmote_client *client) {
    uint8_t seal[UNIT];
    fedmote_put_u32(seal, client->round.crc);
    fedmote_put_u32(seal + 4, ~client->round.crc);
    client->log.phase = REST;
    return write(client, client->log.region, client->log.update + HEAD + whole_units(content_bytes(client)), seal,
                 UNIT);
}

static bool work(struct fedmote_client *client) {
    static bool (*const works[])(struct fedmote_client *) = {
        [BEGIN] = begin,           [ERASE] = erase,     [REGION] = write_region, [RECORD] = write_record,
        [CONTENT] = write_content, [BLOB] = write_blob, [SEAL] = write_seal,
    };
    /* The partner's samples cannot be offered again after a reset: with one before it has them, training begins anew.
     */
    if (client->log.phase == REST || client->samples.is_open) {
        return false;
    }
    if (!works[client->log.phase](client)) {
        lose(client, FEDMOTE_ERR_SLOT_IO);
    }
    return true;
}

/* ---- after a reset ------------------------------------------------------------------------------------------------
 */

static bool find(struct fedmote_client *client) {
    struct fedmote_round *round = &client->round;
    if (client->log.phase != REST || client->log.update == 0U) {
        return false;
    }
    const uint8_t *record = base_of(client, client->log.region) + client->log.update;
    struct head head;
    struct content content;
    if (!read_head(record, &head) || head.size < sizeof content) {
        return false;
    }
    memcpy(&content, record + HEAD, sizeof content);
    if (content.device != fedmote_client_device(client) || memcmp(content.plan, &round->plan, PLAN_BYTES) != 0 ||
        fedmote_crc32(0, record + HEAD, head.size) != fedmote_load_u32(record + HEAD + whole_units(head.size))) {
        return false;
    }
    round->results = content.results;
    round->sample_count = content.sample_count;
    round->layout.cache = content.arena_used_bytes;
    round->layout.cached = 0;
    round->recorded = record + HEAD + sizeof content;
    fedmote_offer_open(&client->update, head.size - (uint32_t)sizeof content, round->results.update_crc, client->now);
    fedmote_client_go(client, FEDMOTE_STATE_REPORT);
    return true;
}

static void drop(struct fedmote_client *client) {
    static const uint8_t mark[UNIT] = {'F', 'M', 'J', 'D', 'F', 'M', 'J', 'D'};
    struct fedmote_log *log = &client->log;
    struct head head;
    if (log->phase == REST && log->update != 0U && read_head(base_of(client, log->region) + log->update, &head) &&
        !write(client, log->region, log->update + extent(head.size) - UNIT, mark, sizeof mark)) {
        lose(client, FEDMOTE_ERR_SLOT_IO);
    }
    log->phase = REST;
    log->update = 0;
}

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */

/* Writes the record of a key at the tail; what a failed write has touched is passed over. */
static bool append_key(struct fedmote_client *client, const uint8_t *secret, const uint8_t origin[UNIT]) {
    struct fedmote_log *log = &client->log;
    const uint32_t at = log->tail + HEAD;
    uint8_t seal[UNIT];
    const uint32_t crc = fedmote_crc32(fedmote_crc32(0, secret, SECRET), origin, UNIT);
    fedmote_put_u32(seal, crc);
    fedmote_put_u32(seal + 4, ~crc);
    log->tail += KEY_RECORD;
    return write_head(client, log->region, at - HEAD, KIND_KEY, KEY) &&
           write(client, log->region, at, secret, SECRET) && write(client, log->region, at + SECRET, origin, UNIT) &&
           write(client, log->region, at + KEY, seal, UNIT);
}

static bool keep_key(struct fedmote_client *client, const uint8_t *secret) {
    struct fedmote_log *log = &client->log;
    const uint8_t *record = key_record(client);
    uint8_t origin[UNIT] = {0};
    if (log->phase != REST) { /* an update is being written: it is not disturbed, and the key comes again */
        return false;
    }
    fedmote_put_u32(origin, record != NULL ? fedmote_load_u32(record + HEAD + SECRET) : origin_of(client));
    int32_t status = FEDMOTE_ERR_SLOT;
    if (HEAD + KEY_RECORD + BOOTS * HEAD <= room(client)) {
        status = FEDMOTE_ERR_SLOT_IO;
        if ((has_room(client, KEY_RECORD) || change_region(client)) && has_room(client, KEY_RECORD) &&
            append_key(client, secret, origin)) {
            client->identity.key = base_of(client, log->region) + log->tail - KEY_RECORD + HEAD;
            return true;
        }
    }
    fedmote_client_note(client, FEDMOTE_EVENT_JOURNAL_LOST, status);
    return false;
}

const struct fedmote_journal fedmote_flash_journal = {
    .open = open, .find = find, .work = work, .drop = drop, .keep_key = keep_key};
