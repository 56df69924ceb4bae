/* SPDX-License-Identifier: Apache-2.0
 *
 * The training is over, and so the arena rests but for the samples and, where some of them wait for the partner, the
 * encoder's input:
 *
 *     velocity           the words u32[P], little endian, in the end under all their masks
 *     16 bytes before    the CBOR in front of them, which ends where they begin: the blob of step 2 is one piece
 *     a room             everything else, from the encoder on, or from the head on where samples may wait in the
 *                        encoder, or in what embeddings were cached in, where there is more of that; not before the
 * words are made, since head and head_base are what they are made of
 *
 * Nothing is drawn: secrets are hashes of the member's own secret, which stays where the identity has it, and a salt
 * that never comes again. So x, b and the coefficients of their shares are computed where they are needed, and kept
 * nowhere.
 *
 * The arithmetic of the words is float32, in the order of the parameters, each operation rounded: the norm is the root
 * of a running sum of squares; a word is delta / max(norm, clip norm) * m, rounded to the nearest (halves away from
 * zero) and cut to m either way. A norm beyond float32 makes words of zeros. A quotient of float32 is exact to 2^-24,
 * as fine as the deltas themselves.
 *
 * Time says nothing about secrets: no branch and no index depends on one, shares are computed with eight shifts for
 * each product. Places, numbers, and who survived are known to the coordinator.
 */
#include "masks.h"

#include <math.h>
#include <string.h>

#include "client.h"
#include "crc32.h"
#include "little_endian.h"
#include "update.h"
#include "wipe.h"

enum {
    KEY = 32,
    TAG = 16,
    NONCE = 24,
    SALT = 8,
    BOX = 2 * KEY + TAG,
    PIECE = 256,
    WORDS = PIECE / 4,
    WORD = 4,
    FORMAT = 1,
    LIST = 4,                  /* in front of peers and shares: format, k, zero */
    PEER = SALT + KEY + BOX,   /* salt, X, box */
    KEYS = 4 + SALT + 2 * KEY, /* in front of the boxes of step 1 */
    BLOB = LIST + PEER * (int)FEDMOTE_MASKING_NEIGHBOURS,
    PREFIX = 16, /* room for the CBOR in front of the words */
    TAG_U32_LE = 70,
    LEAST_MEMBERS = 8,
    MASKING = 28
};

/* Offsets in an identity's group. */
enum { NUMBER = 8, MEMBERS = 9, NEIGHBOURS = FEDMOTE_MASKING_K, THRESHOLD = 11, SECRET = 12, FIRST = 44, NEXT = 33 };

/* Offsets in the field `masking` of a plan. */
enum { CLIP_NORM = 8, STEP = 12, SURVIVORS = 13, PEERS_HANDLE = 16, PEERS_SIZE = 20, PEERS_CRC = 24 };

/* What a key is for; numbers of the specification. */
enum purpose { MASK_SECRET = 1, OWN_SEED, COEFFICIENT, BOX_KEY, PAIR_KEY, OWN_KEY };

/* In the order of a participation. */
enum phase {
    REST,
    NORM,
    MAKE,
    PUBLIC,
    BOXES,
    KEYS_OFFERED,
    FETCH,
    OPEN,
    PAIR,
    PAIR_MASK,
    OWN,
    OWN_MASK,
    MASKED,
    ANSWERED
};

struct room {
    uint8_t blob[BLOB]; /* of step 1; then the peers; then the shares of step 3, made in the place of the peers */
    uint8_t piece[PIECE];
    uint8_t key[KEY]; /* of the mask under way */
    uint8_t salt[SALT];
    uint32_t peers_crc;
    uint8_t keyed; /* bit i: the keys of neighbour i came */
};

/* ---- where things are ---------------------------------------------------------------------------------------------
 */

static const uint8_t *group_of(const struct fedmote_client *client) { return client->identity.masking; }

static const uint8_t *neighbour_of(const struct fedmote_client *client, uint32_t index) {
    return group_of(client) + FIRST + NEXT * index;
}

static uint32_t parameters_of(const struct fedmote_client *client) { return client->round.package.head_parameters; }

static uint8_t *words_of(const struct fedmote_client *client) { return client->arena + client->round.layout.velocity; }

/* Where the room of a round begins; 0: nowhere. */
static uint32_t find_room(const struct fedmote_client *client) {
    const struct fedmote_layout *layout = &client->round.layout;
    uint32_t begin = client->round.plan.is_sending_samples ? layout->head : layout->encoder;
    uint32_t end = layout->velocity - PREFIX;
    if (end - begin < sizeof(struct room)) {
        begin = layout->cache;
        end = client->arena_bytes;
    }
    return end - begin < sizeof(struct room) ? 0 : begin;
}

/* Where it began when masking began: a new plan may be there by the time that it is wiped. */
static struct room *room_of(const struct fedmote_client *client) {
    return (struct room *)(void *)(client->arena + client->masks.room);
}

/* ---- keys and shares ----------------------------------------------------------------------------------------------
 */

/* A key for one purpose, from `key`; `salt` NULL: zeros. */
static void derive(const struct fedmote_client *client, uint8_t out[KEY], const uint8_t key[KEY], enum purpose purpose,
                   uint8_t a, uint8_t b, uint8_t index, const uint8_t *salt) {
    static const uint8_t domain[16] = {'f', 'e', 'd', 'm', 'o', 't', 'e', ' ', 'm', 'a', 's', 'k', 'i', 'n', 'g', '1'};
    uint8_t about[40] = {0};
    memcpy(about, domain, sizeof domain);
    about[16] = (uint8_t)purpose;
    about[17] = a;
    about[18] = b;
    about[19] = index;
    memcpy(about + 20, client->round.plan.run, sizeof client->round.plan.run);
    fedmote_put_u32(about + 28, client->round.plan.round);
    if (salt) {
        memcpy(about + 32, salt, SALT);
    }
    client->port->hash(client->port->context, key, KEY, about, sizeof about, out);
}

/* A secret of this participation: x or b, or coefficient `index` of its shares. */
static void own_secret(const struct fedmote_client *client, uint8_t out[KEY], enum purpose purpose, uint8_t b,
                       uint8_t index) {
    const uint8_t *group = group_of(client);
    derive(client, out, group + SECRET, purpose, group[NUMBER], b, index, room_of(client)->salt);
}

/* The product of a byte and a small public number in GF(256) modulo 0x11B. */
static uint8_t times(uint8_t byte, uint32_t number) {
    uint8_t product = 0;
    for (uint32_t bit = 0; bit < 8; bit++) {
        product ^= (uint8_t)(byte & -(number >> bit & 1));
        byte = (uint8_t)(byte << 1 ^ (0x1B & -(byte >> 7)));
    }
    return product;
}

/* The share of x (`which` 0) or b (1) at `place`, by Horner's rule. */
static void make_share(const struct fedmote_client *client, uint8_t share[KEY], uint8_t which, uint32_t place) {
    uint8_t term[KEY];
    memset(share, 0, KEY);
    for (uint32_t j = group_of(client)[THRESHOLD]; j-- > 0;) {
        if (j > 0) {
            own_secret(client, term, COEFFICIENT, which, (uint8_t)j);
        } else {
            own_secret(client, term, which == 0 ? MASK_SECRET : OWN_SEED, 0, 0);
        }
        for (uint32_t i = 0; i < KEY; i++) {
            share[i] = times(share[i], place) ^ term[i];
        }
    }
    fedmote_wipe(term, sizeof term);
}

/* The key of a box from `sender` to `receiver`, of which one is the neighbour `index`. */
static bool make_box_key(const struct fedmote_client *client, uint8_t key[KEY], uint32_t index, bool is_sent,
                         const uint8_t salt[SALT]) {
    const uint8_t own = group_of(client)[NUMBER];
    const uint8_t *other = neighbour_of(client, index);
    uint8_t shared[KEY];
    const bool is_agreed = client->port->agree(shared, group_of(client) + SECRET, other + 1) == 0;
    derive(client, key, shared, BOX_KEY, is_sent ? own : *other, is_sent ? *other : own, 0, salt);
    fedmote_wipe(shared, sizeof shared);
    return is_agreed;
}

static const uint8_t no_nonce[NONCE];

/* ---- what goes wrong ----------------------------------------------------------------------------------------------
 */

/* This participation is over, and the round has no other for this device. */
static void fail(struct fedmote_client *client, int32_t status) {
    client->is_round_finished = true;
    fedmote_client_fail(client, status, "masks", true);
}

static void offer(struct fedmote_client *client, uint8_t step, enum phase phase, const uint8_t *blob, uint32_t size,
                  uint32_t crc) {
    struct room *room = room_of(client);
    fedmote_wipe(room->key, sizeof room->key);
    fedmote_wipe(room->piece, sizeof room->piece);
    client->masks.step = step;
    client->masks.phase = (uint8_t)phase;
    client->round.recorded = blob;
    fedmote_offer_open(&client->update, size, crc, client->now);
}

static void go_to(struct fedmote_client *client, enum phase phase) {
    client->masks.phase = (uint8_t)phase;
    client->masks.neighbour = 0;
    client->round.cursor = 0; /* the round rests */
}

/* ---- words --------------------------------------------------------------------------------------------------------
 */

static float delta_of(const struct fedmote_client *client, uint32_t index) {
    const struct fedmote_round *round = &client->round;
    return round->head.arithmetic->delta(&round->head, fedmote_round_head_base(round), index);
}

/* Ends at the parameters, WORDS further at most. */
static uint32_t piece_end(const struct fedmote_client *client) {
    const uint32_t left = parameters_of(client) - client->round.cursor;
    return client->round.cursor + (left < WORDS ? left : WORDS);
}

static void measure(struct fedmote_client *client) {
    struct fedmote_masks *masks = &client->masks;
    for (const uint32_t end = piece_end(client); client->round.cursor < end; client->round.cursor++) {
        const float delta = delta_of(client, client->round.cursor);
        masks->norm += delta * delta;
    }
    if (client->round.cursor == parameters_of(client)) {
        masks->norm = sqrtf(masks->norm);
        go_to(client, MAKE);
    }
}

static void make_words(struct fedmote_client *client) {
    const struct fedmote_masks *masks = &client->masks;
    const int32_t most = INT32_MAX / group_of(client)[MEMBERS];
    const float bound = masks->norm > masks->clip_norm ? masks->norm : masks->clip_norm;
    for (const uint32_t end = piece_end(client); client->round.cursor < end; client->round.cursor++) {
        const float steps = delta_of(client, client->round.cursor) / bound * (float)most;
        int32_t word = most;
        if (steps <= (float)-most) {
            word = -most;
        } else if (steps < (float)most) {
            word = (int32_t)steps;
            const float rest = steps - (float)word;
            word += (rest >= 0.5f) - (rest <= -0.5f);
        }
        fedmote_put_u32(words_of(client) + WORD * client->round.cursor, (uint32_t)word);
    }
    if (client->round.cursor == parameters_of(client)) {
        go_to(client, PUBLIC);
    }
}

/* ---- step 1: keys -------------------------------------------------------------------------------------------------
 */

/* From here on there is a room. */
static void make_public(struct fedmote_client *client) {
    static const uint8_t base_point[KEY] = {9};
    struct room *room = room_of(client);
    uint8_t secret[KEY];
    memset(room, 0, sizeof *room);
    fedmote_put_u32(room->salt, client->line.boot);
    fedmote_put_u32(room->salt + 4, client->masks.begun++);
    room->blob[0] = FORMAT;
    room->blob[1] = group_of(client)[NUMBER];
    memcpy(room->blob + 4, room->salt, SALT);
    own_secret(client, secret, MASK_SECRET, 0, 0);
    (void)client->port->agree(room->blob + 4 + SALT, secret, base_point);
    own_secret(client, secret, OWN_SEED, 0, 0);
    client->port->hash(client->port->context, secret, KEY, NULL, 0, room->blob + 4 + SALT + KEY);
    fedmote_wipe(secret, sizeof secret);
    go_to(client, BOXES);
}

static void make_box(struct fedmote_client *client) {
    struct room *room = room_of(client);
    const uint32_t index = client->masks.neighbour++;
    uint8_t *box = room->blob + KEYS + BOX * index;
    if (!make_box_key(client, room->key, index, true, room->salt)) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
        return;
    }
    make_share(client, box, 0, index + 1);
    make_share(client, box + KEY, 1, index + 1);
    client->port->crypto->lock(box, 2 * KEY, box + 2 * KEY, room->key, no_nonce, NULL, 0);
    if (client->masks.neighbour == group_of(client)[NEIGHBOURS]) {
        const uint32_t size = KEYS + BOX * (uint32_t)client->masks.neighbour;
        offer(client, 1, KEYS_OFFERED, room->blob, size, fedmote_crc32(0, room->blob, size));
    }
}

/* ---- step 2: the masked update ------------------------------------------------------------------------------------
 */

static const uint8_t *peer_of(const struct room *room, uint32_t index) { return room->blob + LIST + PEER * index; }

static bool is_zero(const uint8_t *bytes, uint32_t size) {
    uint8_t any = 0;
    for (uint32_t i = 0; i < size; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

static uint32_t count_bits(uint32_t bits) {
    uint32_t count = 0;
    for (; bits != 0; bits &= bits - 1) {
        count++;
    }
    return count;
}

/* The peers have come: who of the neighbours is among them? */
static void check_peers(struct fedmote_client *client) {
    struct room *room = room_of(client);
    const uint8_t *group = group_of(client);
    client->fetch = FEDMOTE_FETCH_CHOOSE;
    if (fedmote_crc32(0, room->blob, client->receiver.size) != room->peers_crc) {
        fail(client, FEDMOTE_ERR_CRC);
        return;
    }
    for (uint32_t i = 0; i < group[NEIGHBOURS]; i++) {
        room->keyed |= (uint8_t)((is_zero(peer_of(room, i), PEER) ? 0U : 1U) << i);
    }
    if (room->blob[0] != FORMAT || room->blob[1] != group[NEIGHBOURS] || room->blob[2] != 0 || room->blob[3] != 0 ||
        count_bits(room->keyed) < group[THRESHOLD]) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
        return;
    }
    go_to(client, OPEN);
}

/* Moves to the next neighbour whose keys came; false behind the last one. */
static bool find_neighbour(struct fedmote_client *client) {
    struct fedmote_masks *masks = &client->masks;
    while (masks->neighbour < group_of(client)[NEIGHBOURS] && (room_of(client)->keyed >> masks->neighbour & 1) == 0) {
        masks->neighbour++;
    }
    return masks->neighbour < group_of(client)[NEIGHBOURS];
}

/* A box that is opened stays where it is, as two shares. */
static void open_box(struct fedmote_client *client) {
    struct room *room = room_of(client);
    if (!find_neighbour(client)) {
        go_to(client, PAIR);
        return;
    }
    const uint32_t index = client->masks.neighbour++;
    uint8_t *peer = room->blob + LIST + PEER * index;
    uint8_t *box = peer + SALT + KEY;
    if (!make_box_key(client, room->key, index, false, peer) ||
        client->port->crypto->unlock(box, 2 * KEY, box + 2 * KEY, room->key, no_nonce, NULL, 0) != 0) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
    }
}

static void make_pair_key(struct fedmote_client *client) {
    struct room *room = room_of(client);
    if (!find_neighbour(client)) {
        go_to(client, OWN);
        return;
    }
    const uint32_t index = client->masks.neighbour;
    const uint8_t own = group_of(client)[NUMBER];
    const uint8_t other = *neighbour_of(client, index);
    uint8_t secret[KEY];
    uint8_t shared[KEY];
    own_secret(client, secret, MASK_SECRET, 0, 0);
    const bool is_agreed = client->port->agree(shared, secret, peer_of(room, index) + SALT) == 0;
    derive(client, room->key, shared, PAIR_KEY, own < other ? own : other, own < other ? other : own, 0, NULL);
    fedmote_wipe(secret, sizeof secret);
    fedmote_wipe(shared, sizeof shared);
    if (!is_agreed) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
        return;
    }
    client->masks.phase = PAIR_MASK;
    client->round.cursor = 0;
}

static void make_own_key(struct fedmote_client *client) {
    const uint8_t own = group_of(client)[NUMBER];
    uint8_t seed[KEY];
    own_secret(client, seed, OWN_SEED, 0, 0);
    derive(client, room_of(client)->key, seed, OWN_KEY, own, 0, 0, NULL);
    fedmote_wipe(seed, sizeof seed);
    go_to(client, OWN_MASK);
}

/* Adds the next piece of the mask to the words, or takes it off; true when that was the last one. */
static bool add_mask(struct fedmote_client *client, bool is_negative) {
    struct room *room = room_of(client);
    const uint32_t first = client->round.cursor;
    const uint32_t end = piece_end(client);
    uint8_t nonce[NONCE] = {0};
    uint8_t tag[TAG];
    fedmote_put_u32(nonce, first / WORDS);
    memset(room->piece, 0, PIECE);
    client->port->crypto->lock(room->piece, PIECE, tag, room->key, nonce, NULL, 0);
    for (uint32_t i = first; i < end; i++) {
        uint8_t *word = words_of(client) + WORD * i;
        const uint32_t mask = fedmote_load_u32(room->piece + WORD * (i - first));
        fedmote_put_u32(word, fedmote_load_u32(word) + (is_negative ? 0 - mask : mask));
    }
    client->round.cursor = end;
    return end == parameters_of(client);
}

static void add_pair_mask(struct fedmote_client *client) {
    if (add_mask(client, group_of(client)[NUMBER] > *neighbour_of(client, client->masks.neighbour))) {
        client->masks.neighbour++;
        client->masks.phase = PAIR;
    }
}

/* The last mask. What the coordinator asks about survivors already is answered without handing in an update first: its
 * x may be known by then. */
static void add_own_mask(struct fedmote_client *client) {
    if (!add_mask(client, false)) {
        return;
    }
    client->masks.phase = MASKED;
    if (!client->masks.is_asked) {
        uint8_t prefix[FEDMOTE_UPDATE_PREFIX];
        const uint32_t in_front = fedmote_update_prefix(&client->round, prefix);
        prefix[FEDMOTE_UPDATE_ENCODING] = FEDMOTE_ENCODING_MASKED;
        prefix[FEDMOTE_UPDATE_TAG] = TAG_U32_LE;
        const uint32_t size = in_front + WORD * parameters_of(client);
        uint8_t *blob = words_of(client) - in_front;
        memcpy(blob, prefix, in_front);
        offer(client, 2, MASKED, blob, size, fedmote_crc32(0, blob, size));
    }
}

/* ---- step 3: shares -----------------------------------------------------------------------------------------------
 */

/* In the place of the peers, from the first to the last: what is written ends in front of what is still to be read. */
static void answer(struct fedmote_client *client) {
    struct room *room = room_of(client);
    const uint8_t *group = group_of(client);
    const uint32_t survivors = client->masks.survivors;
    if ((survivors & ~(uint32_t)room->keyed) != 0 || count_bits(survivors) < group[THRESHOLD]) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
        return;
    }
    for (uint32_t i = 0; i < group[NEIGHBOURS]; i++) {
        const uint8_t *shares = peer_of(room, i) + SALT + KEY; /* of x, of b; zeros where no keys came */
        memmove(room->blob + LIST + KEY * i, shares + ((survivors >> i & 1) != 0 ? KEY : 0), KEY);
    }
    const uint32_t size = LIST + KEY * (uint32_t)group[NEIGHBOURS];
    fedmote_wipe(room->blob + size, BLOB - size);
    offer(client, 3, ANSWERED, room->blob, size, fedmote_crc32(0, room->blob, size));
}

/* ---- the client's side --------------------------------------------------------------------------------------------
 */

static uint32_t distance_of(uint32_t a, uint32_t b, uint32_t members) {
    const uint32_t ahead = a < b ? b - a : a - b;
    return ahead < members - ahead ? ahead : members - ahead;
}

/* Members and numbers as the specification has them: the neighbours are all those within k / 2 on the ring. */
static bool is_group(const uint8_t *group) {
    const uint32_t members = group[MEMBERS];
    const uint32_t neighbours = group[NEIGHBOURS];
    if (members < LEAST_MEMBERS || group[NUMBER] == 0 || group[NUMBER] > members || neighbours == 0 ||
        neighbours > FEDMOTE_MASKING_NEIGHBOURS || neighbours >= members ||
        (neighbours % 2 != 0 && neighbours != members - 1) || 2U * group[THRESHOLD] <= neighbours ||
        group[THRESHOLD] > neighbours) {
        return false;
    }
    uint32_t last = 0;
    for (uint32_t i = 0; i < neighbours; i++) {
        const uint32_t number = group[FIRST + NEXT * i];
        if (number <= last || number > members || number == group[NUMBER] ||
            distance_of(number, group[NUMBER], members) > (neighbours + 1) / 2) {
            return false;
        }
        last = number;
    }
    return true;
}

static bool is_ready(const struct fedmote_client *client) {
    const struct fedmote_port *port = client->port;
    return port->agree && port->hash && client->identity.key && is_group(group_of(client));
}

/* The field of a plan for this group; NULL: it has none, or a wrong one. */
static const uint8_t *read_masking(const struct fedmote_client *client, const struct fedmote_message *plan,
                                   float *clip_norm) {
    if (!group_of(client) || !fedmote_message_has(plan, FEDMOTE_FIELD_MASKING)) {
        return NULL;
    }
    const uint8_t *masking = plan->bytes[FEDMOTE_FIELD_MASKING];
    const uint32_t bits = fedmote_load_u32(masking + CLIP_NORM);
    memcpy(clip_norm, &bits, sizeof bits);
    const bool is_right = memcmp(masking, group_of(client), NUMBER) == 0 && *clip_norm > 0.0f && isfinite(*clip_norm) &&
                          masking[STEP] >= 1 && masking[STEP] <= 3;
    return is_right ? masking : NULL;
}

static int32_t check(struct fedmote_client *client, const struct fedmote_message *plan) {
    struct fedmote_masks *masks = &client->masks;
    masks->step = 0;
    if (!group_of(client) && !fedmote_message_has(plan, FEDMOTE_FIELD_MASKING)) {
        return FEDMOTE_OK;
    }
    if (!read_masking(client, plan, &masks->clip_norm)) {
        return FEDMOTE_ERR_MASK_GROUP;
    }
    masks->step = 1;
    client->log.update = 0; /* of a round without masks, before the device was put into a group */
    return FEDMOTE_OK;
}

static void enter(struct fedmote_client *client) {
    struct fedmote_masks *masks = &client->masks;
    if (masks->phase != REST) {
        if (masks->phase > MAKE) {
            fedmote_wipe((uint8_t *)room_of(client), sizeof(struct room));
        }
        masks->phase = REST;
    }
    if (masks->step == 0) {
        return;
    }
    if (client->state == FEDMOTE_STATE_ENCODE && find_room(client) == 0) {
        fedmote_client_fail(client, FEDMOTE_ERR_ARENA, "masks", true);
    } else if (client->state == FEDMOTE_STATE_REPORT) {
        client->update.is_open = false;
        client->log.phase = 0; /* nothing of this is for the journal */
        masks->room = find_room(client);
        masks->is_asked = false;
        masks->norm = 0.0f;
        go_to(client, NORM);
    }
}

/* The first peers count: nothing is made of others once they are there. */
static void take_peers(struct fedmote_client *client, const uint8_t *masking) {
    struct room *room = room_of(client);
    const uint32_t handle = fedmote_load_u32(masking + PEERS_HANDLE);
    const uint32_t crc = fedmote_load_u32(masking + PEERS_CRC);
    const bool is_same = client->masks.phase == FETCH && handle == client->receiver.handle && crc == room->peers_crc;
    if (is_same || (client->masks.phase != KEYS_OFFERED && client->masks.phase != FETCH)) {
        return;
    }
    const uint32_t size = fedmote_load_u32(masking + PEERS_SIZE);
    if (size != LIST + PEER * (uint32_t)group_of(client)[NEIGHBOURS]) {
        fail(client, FEDMOTE_ERR_MASK_NEIGHBOURS);
        return;
    }
    room->peers_crc = crc;
    client->update.is_open = false;
    client->masks.phase = FETCH;
    client->fetch = FEDMOTE_FETCH_PEERS;
    client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
    fedmote_receiver_begin(&client->receiver, handle, size, FEDMOTE_LIMIT_WINDOW, client->now);
}

static void take_plan(struct fedmote_client *client, const struct fedmote_message *plan) {
    struct fedmote_masks *masks = &client->masks;
    float clip_norm;
    const uint8_t *masking = read_masking(client, plan, &clip_norm);
    if (!masking) {
        fail(client, FEDMOTE_ERR_MASK_GROUP);
        return;
    }
    if (masking[STEP] >= 2 && masks->phase >= KEYS_OFFERED) {
        take_peers(client, masking);
    }
    if (masking[STEP] == 3 && masks->phase > KEYS_OFFERED) {
        if (masks->is_asked && masks->survivors != masking[SURVIVORS]) {
            fail(client, FEDMOTE_ERR_MASK_ANSWERED);
            return;
        }
        masks->is_asked = true;
        masks->survivors = masking[SURVIVORS];
    }
}

/* One chunk of the peers. */
static void take_data(struct fedmote_client *client, const struct fedmote_message *data) {
    if (client->masks.phase != FETCH) {
        return;
    }
    const int32_t bit = fedmote_receiver_accept(&client->receiver, data);
    if (bit >= 0) {
        memcpy(room_of(client)->blob + data->number[FEDMOTE_FIELD_OFFSET], data->bytes[FEDMOTE_FIELD_DATA],
               data->number[FEDMOTE_FIELD_DATA]);
        fedmote_receiver_done(&client->receiver, bit, client->now);
    }
}

static bool hear(struct fedmote_client *client, const struct fedmote_message *message) {
    struct fedmote_masks *masks = &client->masks;
    const uint32_t *number = message->number;
    const uint32_t handle = number[FEDMOTE_FIELD_HANDLE];
    const bool is_of_round = fedmote_message_has(message, FEDMOTE_FIELD_ROUND) &&
                             number[FEDMOTE_FIELD_ROUND] == client->round.plan.round &&
                             fedmote_client_is_current_run(client, message);
    if (masks->phase == REST) {
        return false;
    }
    switch (message->kind) {
    case FEDMOTE_KIND_PLAN:
        if (is_of_round) {
            take_plan(client, message);
        }
        return client->state != FEDMOTE_STATE_REPORT;
    case FEDMOTE_KIND_DATA:
        take_data(client, message);
        return true;
    case FEDMOTE_KIND_ACK:
        if (is_of_round && client->update.is_open && handle == client->update.handle && masks->step < 3) {
            client->update.is_open = false;
            client->backoff_ms = FEDMOTE_HELLO_MIN_MS;
            return true;
        }
        return false;
    case FEDMOTE_KIND_REFUSE:
        if (masks->phase == FETCH && fedmote_message_has(message, FEDMOTE_FIELD_HANDLE) &&
            handle == client->receiver.handle) { /* the next plan says where the peers are now */
            masks->phase = KEYS_OFFERED;
            client->fetch = FEDMOTE_FETCH_CHOOSE;
            return true;
        }
        return false;
    case FEDMOTE_KIND_WAIT:
        if (number[FEDMOTE_FIELD_WAIT_MS] > 0) { /* 0 is the challenge of a coordinator that began anew */
            client->update.is_open = false;
            client->is_round_finished = true;
            fedmote_client_go(client, FEDMOTE_STATE_IDLE);
        }
        return false;
    default:
        return false;
    }
}

static bool work(struct fedmote_client *client) {
    static void (*const works[])(struct fedmote_client *) = {
        [NORM] = measure,      [MAKE] = make_words,       [PUBLIC] = make_public, [BOXES] = make_box,
        [FETCH] = check_peers, [OPEN] = open_box,         [PAIR] = make_pair_key, [PAIR_MASK] = add_pair_mask,
        [OWN] = make_own_key,  [OWN_MASK] = add_own_mask, [MASKED] = answer,      [ANSWERED] = NULL,
    };
    struct fedmote_masks *masks = &client->masks;
    if (masks->phase == REST) {
        return false;
    }
    const bool is_waiting =
        (masks->phase == FETCH && client->receiver.missing != 0) || (masks->phase == MASKED && !masks->is_asked);
    if (works[masks->phase] && !is_waiting) {
        works[masks->phase](client);
        return true;
    }
    if (masks->phase != FETCH && !client->update.is_open && !client->hello.is_set) {
        fedmote_client_back_off(client); /* the answer is the plan with what there is by now */
    }
    return false;
}

const struct fedmote_masking fedmote_sum_masking = {
    .is_ready = is_ready, .check = check, .enter = enter, .hear = hear, .work = work};
