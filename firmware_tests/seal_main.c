/* SPDX-License-Identifier: Apache-2.0
 *
 * Seals and opens the bodies of seal.json with the device's code, for test_seal_vectors.py. Lines of standard input:
 *
 *   close channel kind id epoch boot sequence key payload    prints the sealed body
 *   open channel kind id epoch boot sequence key body        prints `0 payload` or the status; epoch and sequence are
 *                                                            the last ones that were taken (epoch 0: none)
 *
 * Numbers are decimal, key, payload and body hexadecimal, an empty one is "-". The same key is that of both channels.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "hex.h"
#include "monocypher_port.h"

enum { CAPACITY = (FEDMOTE_BODY_MAX + 128 + 15) / 16 * 16, FIELD = 4 * FEDMOTE_BODY_MAX };

struct task {
    char verb[8], id[40], key[80], bytes[FIELD];
    unsigned channel, kind;
    uint32_t epoch, boot, sequence;
};

static void run(struct fedmote_client *client, const struct task *task) {
    uint8_t *body = client->line.transmit + FEDMOTE_BODY_OFFSET;
    if (strcmp(task->verb, "close") == 0) {
        client->seal.channels[task->channel].next = task->sequence;
        uint32_t size = fedmote_message_sealing.close(client, (uint8_t)task->channel, (uint8_t)task->kind,
                                                      unhex(task->bytes, body));
        print_hex(body, size);
        printf("\n");
        return;
    }
    client->seal.channels[task->channel].newest = task->sequence;
    client->seal.channels[task->channel].taken = 1;
    struct fedmote_frame frame = {(uint8_t)task->channel, (uint8_t)task->kind, client->line.receive + 7, 0};
    frame.size = unhex(task->bytes, client->line.receive + 7);
    if (!fedmote_message_sealing.open(client, &frame)) {
        printf("%" PRId32 "\n", client->line.error);
        return;
    }
    printf("0 ");
    print_hex(frame.body, frame.size);
    printf("\n");
}

int main(void) {
    static uint8_t receive[CAPACITY + 7], transmit[CAPACITY];
    static struct task task;
    while (scanf("%7s %u %u %39s %" SCNu32 " %" SCNu32 " %" SCNu32 " %79s %s", task.verb, &task.channel, &task.kind,
                 task.id, &task.epoch, &task.boot, &task.sequence, task.key, task.bytes) == 9) {
        uint8_t key[40];
        (void)unhex(task.key, key);
        const struct fedmote_port port = {.sealing = &fedmote_message_sealing, .crypto = &monocypher_crypto};
        struct fedmote_client client;
        memset(&client, 0, sizeof client);
        client.port = &port;
        client.identity = (struct fedmote_identity){.id = task.id, .key = key, .cell_key = key};
        client.line.boot = task.boot;
        client.line.receive = receive;
        client.line.transmit = transmit;
        client.seal.channels[task.channel].epoch = task.epoch;
        run(&client, &task);
    }
    return 0;
}
