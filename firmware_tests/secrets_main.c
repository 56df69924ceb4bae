/* SPDX-License-Identifier: Apache-2.0
 *
 * What the device does with keys, for valgrind: every byte of a key counts as not initialised, so memcheck reports each
 * branch and each address that depends on one (Langley's ctgrind). Lines of standard input:
 *
 *   close channel kind payload     prints the sealed body
 *   open channel kind body         prints 0 and the payload, or the status; of a rekey 0 and whether the key is used
 *   compare                        a comparison that ends at the first difference: memcheck must report it
 *   look-up                        an address that depends on a key: likewise
 *
 * Payload and body are hexadecimal, an empty one is "-". The id is "board-1", its keys are 32 bytes 0x11 and 0x22,
 * boot 1. What a cipher has made is public: texts, tags, and the one bit whether a tag fits.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <valgrind/memcheck.h>

#include "client.h"
#include "hex.h"
#include "monocypher_port.h"

enum {
    CAPACITY = (FEDMOTE_BODY_MAX + 128 + 15) / 16 * 16,
    FIELD = 4 * FEDMOTE_BODY_MAX,
    KEY = 32,
    JOURNAL_BYTES = 1024,
    SECRET_AT = 5 /* of the body of a rekey: a map, a key of two bytes and the head of a string before it */
};

static struct bench {
    struct fedmote_client client;
    uint8_t key[KEY], cell_key[KEY];
    uint8_t journal[2][JOURNAL_BYTES] __attribute__((aligned(8)));
    uint8_t receive[CAPACITY + 7], transmit[CAPACITY];
    bool is_rekey;
} bench;

/* ---- what the port gives ------------------------------------------------------------------------------------------
 */

static void lock(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size) {
    monocypher_crypto.lock(bytes, size, tag, key, nonce, associated, associated_size);
    (void)VALGRIND_MAKE_MEM_DEFINED(bytes, size);
    (void)VALGRIND_MAKE_MEM_DEFINED(tag, 16);
}

static int32_t unlock(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size) {
    int32_t status = monocypher_crypto.unlock(bytes, size, tag, key, nonce, associated, associated_size);
    (void)VALGRIND_MAKE_MEM_DEFINED(&status, sizeof status);
    (void)VALGRIND_MAKE_MEM_DEFINED(bytes, size);
    if (bench.is_rekey && status == 0) {
        (void)VALGRIND_MAKE_MEM_UNDEFINED(bytes + SECRET_AT, KEY);
    }
    return status;
}

static const struct fedmote_crypto crypto = {lock, unlock};

static uint32_t port_random(void *context) {
    (void)context;
    return 0;
}

static const uint8_t *journal_base(void *context, uint32_t region) {
    (void)context;
    return bench.journal[region];
}

static int32_t journal_erase(void *context, uint32_t region) {
    (void)context;
    memset(bench.journal[region], 0xFF, JOURNAL_BYTES);
    return 0;
}

static int32_t journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    memcpy(bench.journal[region] + offset, bytes, size);
    return 0;
}

static const struct fedmote_port port = {
    .random = port_random,
    .journal = &fedmote_flash_journal,
    .journal_bytes = JOURNAL_BYTES,
    .journal_base = journal_base,
    .journal_erase = journal_erase,
    .journal_write = journal_write,
    .sealing = &fedmote_renewable_sealing,
    .crypto = &crypto,
};

/* ---- what is done -------------------------------------------------------------------------------------------------
 */

static void close_body(unsigned channel, unsigned kind, const char *payload) {
    uint8_t *body = bench.client.line.transmit + FEDMOTE_BODY_OFFSET;
    const uint32_t size =
        fedmote_renewable_sealing.close(&bench.client, (uint8_t)channel, (uint8_t)kind, unhex(payload, body));
    print_hex(body, size);
    (void)printf("\n");
}

static void open_body(unsigned channel, unsigned kind, const char *body) {
    struct fedmote_frame frame = {(uint8_t)channel, (uint8_t)kind, bench.client.line.receive + 7, 0};
    const uint8_t *before = bench.client.identity.key;
    frame.size = unhex(body, bench.client.line.receive + 7);
    bench.is_rekey = kind == FEDMOTE_KIND_REKEY;
    bench.client.line.error = FEDMOTE_OK;
    const bool is_open = fedmote_renewable_sealing.open(&bench.client, &frame);
    if (is_open) {
        (void)printf("0 ");
        print_hex(frame.body, frame.size);
        (void)printf("\n");
    } else if (bench.client.line.error == FEDMOTE_OK) {
        (void)printf("0 %d\n", bench.client.identity.key != before);
    } else {
        (void)printf("%" PRId32 "\n", bench.client.line.error);
    }
}

/* Both are what memcheck must find. The guess is the key but for its last byte. */
static void leak(bool is_address) {
    static const uint8_t table[256] = {1};
    volatile uint32_t seen = 0;
    if (is_address) {
        seen = table[bench.client.identity.key[3]];
    } else {
        for (uint32_t i = 0; i < KEY && bench.client.identity.key[i] == 0x11; i++) {
            seen = i;
        }
    }
    (void)printf("%d\n", seen < KEY);
}

static void begin(void) {
    struct fedmote_client *client = &bench.client;
    memset(bench.key, 0x11, KEY);
    memset(bench.cell_key, 0x22, KEY);
    client->port = &port;
    client->identity = (struct fedmote_identity){.id = "board-1", .key = bench.key, .cell_key = bench.cell_key};
    client->line.port = &port;
    client->line.receive = bench.receive;
    client->line.transmit = bench.transmit;
    port.journal->open(client);
    client->line.boot = 1;
    (void)VALGRIND_MAKE_MEM_UNDEFINED(bench.key, KEY);
    (void)VALGRIND_MAKE_MEM_UNDEFINED(bench.cell_key, KEY);
}

int main(void) {
    static char verb[12], content[FIELD];
    unsigned channel = 0, kind = 0;
    begin();
    while (scanf("%11s", verb) == 1) {
        if (strcmp(verb, "compare") == 0 || strcmp(verb, "look-up") == 0) {
            leak(verb[0] == 'l');
        } else if (scanf("%u %u %803s", &channel, &kind, content) != 3) {
            return 2;
        } else if (verb[0] == 'c') {
            close_body(channel, kind, content);
        } else {
            open_body(channel, kind, content);
        }
    }
    return 0;
}
