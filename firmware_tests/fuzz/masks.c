/* SPDX-License-Identifier: Apache-2.0
 *
 * A member of a group of eight in masked rounds: scripts of device.h, and one more line:
 *
 *     6, step u8, survivors u8, size u16, peers     the plan, which names peers that begin with these bytes, and the
 *                                                   chunks of them, all with the right sizes and checksums
 *
 * Messages are not sealed and cryptography is a sum of bytes, so that a script can be written down and everything
 * behind it is reached: a tag fits where its first byte is even, a public key is none where its first byte is 0xFF.
 */
#include "masks.h"
#include "device.h"
#include "seal.h"
#include "wire.h"

enum {
    MEMBERS = 8,
    NEIGHBOURS = 7,
    THRESHOLD = 4,
    PEERS = 4 + 120 * NEIGHBOURS,
    PACKAGE_HEAD = 12, /* the first span of its hash */
    MODEL_HASH = 16,   /* where it stands in a package */
    HANDLE = 0x700,
    /* As FEDMOTE_CHUNK_MAX of this device. */
    CHUNK = (FEDMOTE_BODY_MAX - FEDMOTE_LIMIT_CHUNK_OVERHEAD - FEDMOTE_LIMIT_SEAL) / FEDMOTE_LIMIT_CHUNK_ALIGN *
            FEDMOTE_LIMIT_CHUNK_ALIGN
};

static uint8_t group[FEDMOTE_MASKING_BYTES(NEIGHBOURS)];

/* ---- a port whose cryptography hides nothing ----------------------------------------------------------------------
 */

static int32_t seal_begin(struct fedmote_client *client) {
    (void)client;
    return FEDMOTE_OK;
}

static uint32_t seal_close(struct fedmote_client *client, uint8_t channel, uint8_t kind, uint32_t size) {
    (void)client;
    (void)channel;
    (void)kind;
    return size;
}

static bool seal_open(struct fedmote_client *client, struct fedmote_frame *frame) {
    (void)client;
    (void)frame;
    return true;
}

static void lock(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size) {
    (void)associated;
    must(associated_size == 0, "masks authenticate nothing besides");
    for (uint32_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(bytes[i] ^ (key[i % 32] + nonce[i % 24] + i));
    }
    memset(tag, 0, 16);
}

static int32_t unlock(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size) {
    uint8_t ignored[16];
    if ((tag[0] & 1) != 0) {
        return -1;
    }
    lock(bytes, size, ignored, key, nonce, associated, associated_size);
    return 0;
}

static int32_t agree(uint8_t shared[32], const uint8_t secret[32], const uint8_t public_key[32]) {
    for (uint32_t i = 0; i < 32; i++) {
        shared[i] = (uint8_t)(secret[i] + public_key[i]);
    }
    return public_key[0] == 0xFF ? -1 : 0;
}

static void hash(void *context, const uint8_t *first, uint32_t first_size, const uint8_t *second, uint32_t second_size,
                 uint8_t digest[32]) {
    (void)context;
    if (first_size == PACKAGE_HEAD) { /* a package is another target's matter: its hash is what it says */
        memcpy(digest, second - 32, 32);
        return;
    }
    for (uint32_t i = 0; i < 32; i++) {
        digest[i] = (uint8_t)(first[i] + (second_size > 0 ? second[i] : 0));
    }
}

/* ---- the coordinator ----------------------------------------------------------------------------------------------
 */

static void put_plan(struct board *board, const uint8_t masking[28]) {
    struct fedmote_message plan;
    uint8_t body[FEDMOTE_BODY_MAX];
    fedmote_message_begin(&plan, FEDMOTE_KIND_PLAN);
    fedmote_message_string(&plan, FEDMOTE_FIELD_RUN, "run-0001", 8);
    fedmote_message_number(&plan, FEDMOTE_FIELD_ROUND, 1);
    fedmote_message_number(&plan, FEDMOTE_FIELD_PHASE, FEDMOTE_PHASE_SIMULTANEOUS);
    fedmote_message_number(&plan, FEDMOTE_FIELD_VERSION, 1);
    fedmote_message_number(&plan, FEDMOTE_FIELD_REMAINING_MS, 100000);
    fedmote_message_string(&plan, FEDMOTE_FIELD_MODEL_HASH, board->slot[0] + MODEL_HASH, 32);
    fedmote_message_number(&plan, FEDMOTE_FIELD_MODEL_HANDLE, 1);
    fedmote_message_number(&plan, FEDMOTE_FIELD_MODEL_SIZE, SLOT / 2);
    fedmote_message_number(&plan, FEDMOTE_FIELD_SEED, 1);
    fedmote_message_number(&plan, FEDMOTE_FIELD_EPOCHS, 1);
    fedmote_message_number(&plan, FEDMOTE_FIELD_BATCH, 2);
    fedmote_message_number(&plan, FEDMOTE_FIELD_LEARNING_RATE_MICRO, 50000);
    fedmote_message_number(&plan, FEDMOTE_FIELD_MOMENTUM_MICRO, 0);
    fedmote_message_string(&plan, FEDMOTE_FIELD_MASKING, masking, 28);
    const int32_t size = fedmote_encode(&plan, body, sizeof body);
    must(size > 0, "the plan cannot be written");
    put_message(board, FEDMOTE_CHANNEL_COORDINATOR, FEDMOTE_KIND_PLAN, body, (uint32_t)size);
}

static void put_chunks(struct board *board, const uint8_t *blob, uint32_t size) {
    for (uint32_t offset = 0; offset < size; offset += CHUNK) {
        struct fedmote_message data;
        uint8_t body[FEDMOTE_BODY_MAX];
        fedmote_message_begin(&data, FEDMOTE_KIND_DATA);
        fedmote_message_number(&data, FEDMOTE_FIELD_HANDLE, HANDLE);
        fedmote_message_number(&data, FEDMOTE_FIELD_OFFSET, offset);
        fedmote_message_string(&data, FEDMOTE_FIELD_DATA, blob + offset, size - offset < CHUNK ? size - offset : CHUNK);
        const int32_t written = fedmote_encode(&data, body, sizeof body);
        must(written > 0, "a chunk cannot be written");
        put_message(board, FEDMOTE_CHANNEL_COORDINATOR, FEDMOTE_KIND_DATA, body, (uint32_t)written);
    }
}

static void act(struct board *board, uint32_t what, struct input *input) {
    static uint8_t peers[PEERS];
    uint8_t masking[28] = {0};
    if (what != 6) {
        return;
    }
    const float clip_norm = 0.5f;
    memcpy(masking, group, 8);
    memcpy(masking + 8, &clip_norm, sizeof clip_norm);
    masking[12] = (uint8_t)take(input, 1);
    masking[13] = (uint8_t)take(input, 1);
    uint32_t size = take(input, 2);
    size = size < PEERS ? size : PEERS;
    size = size < input->left ? size : (uint32_t)input->left;
    memset(peers, 0, sizeof peers);
    memcpy(peers, input->bytes, size);
    input->bytes += size;
    input->left -= size;
    fedmote_put_u32(masking + 16, HANDLE);
    fedmote_put_u32(masking + 20, PEERS);
    fedmote_put_u32(masking + 24, fedmote_crc32(0, peers, PEERS));
    put_plan(board, masking);
    put_chunks(board, peers, PEERS);
}

static void make_group(void) {
    memcpy(group, "group001", 8);
    group[8] = 3;
    group[9] = MEMBERS;
    group[10] = NEIGHBOURS;
    group[11] = THRESHOLD;
    for (uint32_t i = 0, number = 1; i < NEIGHBOURS; i++, number++) {
        number += number == group[8];
        group[44 + 33 * i] = (uint8_t)number;
        group[45 + 33 * i] = (uint8_t)i;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t key[32];
    static const struct fedmote_sealing sealing = {seal_begin, seal_close, seal_open};
    static const struct fedmote_crypto crypto = {lock, unlock};
    make_group();
    const struct fedmote_identity identity = {.id = "b-1",
                                              .site = "lab",
                                              .board = "posix",
                                              .link = &fedmote_serial_link,
                                              .is_sending_samples = 1,
                                              .key = key,
                                              .masking = group};
    struct board board;
    board_open(&board);
    struct fedmote_port port = port_of(&board);
    port.hash = hash;
    port.sealing = &sealing;
    port.crypto = &crypto;
    port.masking = &fedmote_sum_masking;
    port.agree = agree;
    play(&board, &port, &identity, data, size);
    board_close(&board);
    return 0;
}
