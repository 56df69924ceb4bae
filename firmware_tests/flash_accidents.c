/* SPDX-License-Identifier: Apache-2.0
 *
 * The whole client on the flash model, with a coordinator beside it: a story of some rounds is told once undisturbed,
 * then again with an accident at every operation of its flash, and must end with the same updates each time.
 *
 *     flash_accidents STORY ERASED TEAR WHAT [SEED COUNT] PACKAGE...
 *
 * STORY is whole, rest (a package of two windows, in larger slots), difference, journal, or keys, which is journal
 * where the coordinator renews the key twice; ERASED what erased bytes read as; TEAR a number of enum flash_tear; WHAT
 * cuts (each operation), steps (between any two steps of the device), pairs (COUNT pairs of either), errors (each
 * operation, with and without effect), wear (no accident, COUNT rounds). Prints figures, "name value" each; ends with 1
 * and a sentence where something is wrong.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "crc32.h"
#include "flash_model.h"
#include "link.h"

enum {
    ARENA_BYTES = 8192,
    SLOT_BYTES = 2560,
    LARGE_SLOT_BYTES = 8192,
    PACKAGES = 4,
    QUEUE = 72,
    SAMPLES = 6,
    INPUTS = 16,
    UPDATE_BYTES = 512,
    MOST_ROUNDS = 64,
    MOST_STEPS = 200000,
    JOURNAL = 2, /* the first region of the journal in the model */
    SMALL_JOURNAL_BYTES = 640,
    KEYS_JOURNAL_BYTES = 720,
    LARGE_JOURNAL_BYTES = 4096,
    DIFFERENCE_HANDLE = 99,
    MODEL_HANDLE = 7
};

/* When the power fails: during an operation of the flash, or before a step of the device; counted from the boot on. */
struct cut {
    bool is_step;
    uint32_t at; /* FLASH_NEVER: not any more */
};

enum story { WHOLE, REST, DIFFERENCE, JOURNALING, REKEYING };

struct blob {
    uint8_t *bytes;
    uint32_t size;
};

struct queued {
    uint8_t kind, body[FEDMOTE_BODY_MAX];
    uint32_t size;
};

struct coordinator {
    uint32_t round, rounds, attempt, boot;
    bool has_boot;
    uint8_t update[UPDATE_BYTES];
    uint32_t handle, size, crc;
    bool is_pulling, has_report;
    struct queued queue[QUEUE];
    uint32_t first, count;
    uint32_t counted[MOST_ROUNDS];
    uint32_t update_crc[MOST_ROUNDS];
    uint32_t refusals, last_refusal;
    uint32_t key; /* the newest that the device has used */
};

struct bench {
    struct fedmote device;
    struct flash_model flash;
    struct coordinator peer;
    struct blob packages[PACKAGES];
    struct blob difference;
    uint32_t package_count;
    enum story story;
    uint32_t now, random;
    uint32_t steps, off_at; /* since the boot; the one before which the power fails */
    uint32_t last_boot;
    uint32_t boots;
    uint32_t errors_told;
    uint32_t recalled; /* reports of updates that were made before a reset */
    uint32_t served;   /* bytes of chunks of the second round's package */
    uint32_t resumed;  /* fetches that went on with what was there */
    uint8_t arena[ARENA_BYTES] __attribute__((aligned(16)));
    const char *what; /* the accident under way, for messages */
    uint32_t index;
};

static struct fedmote_client *client_of(struct bench *bench) { return (struct fedmote_client *)(void *)&bench->device; }

__attribute__((noreturn)) static void fail(const struct bench *bench, const char *why) {
    (void)printf("%s at operation %u: %s\n", bench->what, (unsigned)bench->index, why);
    exit(1);
}

static void check(const struct bench *bench, bool is_right, const char *why) {
    if (!is_right) {
        fail(bench, why);
    }
    if (bench->flash.fault != NULL) {
        fail(bench, bench->flash.fault);
    }
}

/* ---- port ---------------------------------------------------------------------------------------------------------
 */

static uint32_t port_now_ms(void *context) { return ((struct bench *)context)->now; }

static uint32_t port_random(void *context) { return flash_draw(&((struct bench *)context)->random); }

static int32_t port_stream(void *context, uint8_t *bytes, uint32_t size) {
    (void)context;
    (void)bytes;
    (void)size;
    return 0;
}

static int32_t port_stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    (void)bytes;
    (void)size;
    return 0;
}

static uint32_t port_sample_count(void *context) {
    (void)context;
    return SAMPLES;
}

static int32_t port_sample_read(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label) {
    (void)context;
    for (uint32_t i = 0; i < x_bytes; i++) {
        x[i] = (int8_t)((index * 31U + i * 17U) % 200U) - 100;
    }
    *label = index % 3U;
    return 0;
}

static const uint8_t *port_slot_base(void *context, uint32_t slot) {
    return ((struct bench *)context)->flash.regions[slot].bytes;
}

static int32_t port_slot_erase(void *context, uint32_t slot) {
    return flash_erase(&((struct bench *)context)->flash, slot);
}

static int32_t port_slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    return flash_write(&((struct bench *)context)->flash, slot, offset, bytes, size);
}

static const uint8_t *port_journal_base(void *context, uint32_t region) {
    return port_slot_base(context, JOURNAL + region);
}

static int32_t port_journal_erase(void *context, uint32_t region) { return port_slot_erase(context, JOURNAL + region); }

static int32_t port_journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes,
                                  uint32_t size) {
    return port_slot_write(context, JOURNAL + region, offset, bytes, size);
}

static void port_event(void *context, int32_t event, int32_t value) {
    (void)value;
    ((struct bench *)context)->resumed += event == FEDMOTE_EVENT_RESUMED;
    ((struct bench *)context)->errors_told += event == FEDMOTE_EVENT_ERROR || event == FEDMOTE_EVENT_JOURNAL_LOST;
}

/* ---- coordinator --------------------------------------------------------------------------------------------------
 */

static void tell(struct bench *bench, const struct fedmote_message *message, const uint8_t *data, uint32_t size) {
    struct coordinator *peer = &bench->peer;
    struct queued *queued = &peer->queue[(peer->first + peer->count++) % QUEUE];
    check(bench, peer->count <= QUEUE, "the queue to the device is full");
    const int32_t written = fedmote_encode(message, queued->body, FEDMOTE_BODY_MAX);
    check(bench, written > 0, "a message of the coordinator cannot be encoded");
    queued->kind = message->kind;
    queued->size = (uint32_t)written;
    if (data != NULL) {
        memcpy(queued->body + queued->size - size, data, size);
    }
}

static const uint8_t run[8] = {'r', 'u', 'n', '-', '0', '0', '0', '1'};

/* Package 0 in the first round; then the next one each time, or the same for ever. */
static const struct blob *wanted(const struct bench *bench) {
    const uint32_t round = bench->peer.round - 1U;
    return &bench->packages[bench->story >= JOURNALING ? 0U : round % bench->package_count];
}

static void tell_plan(struct bench *bench) {
    const struct blob *package = wanted(bench);
    struct fedmote_message plan;
    fedmote_message_begin(&plan, FEDMOTE_KIND_PLAN);
    fedmote_message_string(&plan, FEDMOTE_FIELD_RUN, run, sizeof run);
    fedmote_message_string(&plan, FEDMOTE_FIELD_MODEL_HASH, package->bytes + 16, 32);
    const uint32_t numbers[][2] = {
        {FEDMOTE_FIELD_ROUND, bench->peer.round},
        {FEDMOTE_FIELD_ATTEMPT, bench->peer.attempt},
        {FEDMOTE_FIELD_PHASE, FEDMOTE_PHASE_DEVICE},
        {FEDMOTE_FIELD_VERSION, bench->peer.round},
        {FEDMOTE_FIELD_REMAINING_MS, 600000},
        {FEDMOTE_FIELD_MODEL_HANDLE, MODEL_HANDLE},
        {FEDMOTE_FIELD_MODEL_SIZE, package->size},
        {FEDMOTE_FIELD_SEED, 42},
        {FEDMOTE_FIELD_EPOCHS, 1},
        {FEDMOTE_FIELD_BATCH, 4},
        {FEDMOTE_FIELD_LEARNING_RATE_MICRO, 50000},
        {FEDMOTE_FIELD_MOMENTUM_MICRO, 0},
    };
    for (uint32_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        fedmote_message_number(&plan, numbers[i][0], numbers[i][1]);
    }
    if (bench->story == DIFFERENCE && bench->peer.round == 2U) {
        fedmote_message_number(&plan, FEDMOTE_FIELD_DIFFERENCE_HANDLE, DIFFERENCE_HANDLE);
        fedmote_message_number(&plan, FEDMOTE_FIELD_DIFFERENCE_SIZE, bench->difference.size);
    }
    tell(bench, &plan, NULL, 0);
}

/* The identity's key, and those that take its place. */
static const uint8_t keys[3][32] = {"the token, of thirty-two bytes..", "a lasting key, of so many bytes",
                                    "another one after that, the last"};

/* Says the key that is due; false where the device has it. It never goes back, and has no other one. */
static bool tell_key(struct bench *bench) {
    struct coordinator *peer = &bench->peer;
    const uint32_t due = peer->rounds == 1U ? 0U : peer->round < 4U ? 1U : 2U;
    uint32_t used = 0;
    while (used < 3U && memcmp(client_of(bench)->identity.key, keys[used], sizeof keys[used]) != 0) {
        used++;
    }
    check(bench, used < 3U, "the device has a key that nobody gave it");
    check(bench, used >= peer->key, "the device has gone back to an older key");
    peer->key = used;
    if (used == due) {
        return false;
    }
    struct fedmote_message rekey;
    fedmote_message_begin(&rekey, FEDMOTE_KIND_REKEY);
    fedmote_message_string(&rekey, FEDMOTE_FIELD_SECRET, keys[due], sizeof keys[due]);
    tell(bench, &rekey, NULL, 0);
    return true;
}

static void hear_hello(struct bench *bench, const struct fedmote_message *hello) {
    struct coordinator *peer = &bench->peer;
    const uint32_t boot = hello->number[FEDMOTE_FIELD_BOOT];
    if (peer->has_boot && boot != peer->boot) {
        peer->attempt++;
        peer->is_pulling = false;
    }
    peer->has_boot = true;
    peer->boot = boot;
    if (bench->story == REKEYING && tell_key(bench)) {
        return;
    }
    if (peer->round <= peer->rounds) {
        tell_plan(bench);
        return;
    }
    struct fedmote_message wait;
    fedmote_message_begin(&wait, FEDMOTE_KIND_WAIT);
    fedmote_message_number(&wait, FEDMOTE_FIELD_WAIT_MS, 5000);
    tell(bench, &wait, NULL, 0);
}

static void hear_get(struct bench *bench, const struct fedmote_message *get) {
    const uint32_t *number = get->number;
    const uint32_t handle = number[FEDMOTE_FIELD_HANDLE];
    const struct blob *blob = handle == DIFFERENCE_HANDLE ? &bench->difference : wanted(bench);
    for (uint32_t bit = 0; bit < 32; bit++) {
        const uint32_t at = number[FEDMOTE_FIELD_OFFSET] + bit * number[FEDMOTE_FIELD_CHUNK];
        if ((number[FEDMOTE_FIELD_MASK] >> bit & 1U) == 0 || at >= blob->size) {
            continue;
        }
        const uint32_t left = blob->size - at;
        const uint32_t size = left < number[FEDMOTE_FIELD_CHUNK] ? left : number[FEDMOTE_FIELD_CHUNK];
        struct fedmote_message data;
        fedmote_message_begin(&data, FEDMOTE_KIND_DATA);
        fedmote_message_number(&data, FEDMOTE_FIELD_HANDLE, handle);
        fedmote_message_number(&data, FEDMOTE_FIELD_OFFSET, at);
        fedmote_message_string(&data, FEDMOTE_FIELD_DATA, NULL, size);
        tell(bench, &data, blob->bytes + at, size);
        bench->served += handle == MODEL_HANDLE && bench->peer.round == 2U ? size : 0U;
    }
}

static void hear_report(struct bench *bench, const struct fedmote_message *report) {
    struct coordinator *peer = &bench->peer;
    const uint32_t *number = report->number;
    if (peer->is_pulling || number[FEDMOTE_FIELD_ROUND] != peer->round) {
        return;
    }
    if (!peer->has_report) { /* not at once: the device is to keep its update meanwhile, and says it again */
        peer->has_report = true;
        return;
    }
    bench->recalled += client_of(bench)->round.recorded != NULL;
    peer->is_pulling = true;
    peer->handle = number[FEDMOTE_FIELD_HANDLE];
    peer->size = number[FEDMOTE_FIELD_SIZE];
    peer->crc = number[FEDMOTE_FIELD_CRC];
    check(bench, peer->size <= FEDMOTE_CHUNK_MAX, "the update has more than a chunk");
    struct fedmote_message get;
    fedmote_message_begin(&get, FEDMOTE_KIND_GET);
    fedmote_message_number(&get, FEDMOTE_FIELD_HANDLE, peer->handle);
    fedmote_message_number(&get, FEDMOTE_FIELD_OFFSET, 0);
    fedmote_message_number(&get, FEDMOTE_FIELD_CHUNK, FEDMOTE_CHUNK_MAX);
    fedmote_message_number(&get, FEDMOTE_FIELD_MASK, 1);
    tell(bench, &get, NULL, 0);
}

static void hear_data(struct bench *bench, const struct fedmote_message *data) {
    struct coordinator *peer = &bench->peer;
    if (!peer->is_pulling || data->number[FEDMOTE_FIELD_HANDLE] != peer->handle) {
        return;
    }
    const uint32_t crc = fedmote_crc32(0, data->bytes[FEDMOTE_FIELD_DATA], data->number[FEDMOTE_FIELD_DATA]);
    check(bench, crc == peer->crc, "an update with another checksum than its report's");
    struct fedmote_message ack;
    fedmote_message_begin(&ack, FEDMOTE_KIND_ACK);
    fedmote_message_number(&ack, FEDMOTE_FIELD_HANDLE, peer->handle);
    fedmote_message_string(&ack, FEDMOTE_FIELD_RUN, run, sizeof run);
    fedmote_message_number(&ack, FEDMOTE_FIELD_ROUND, peer->round);
    tell(bench, &ack, NULL, 0);
    peer->counted[peer->round]++;
    peer->update_crc[peer->round] = crc;
    peer->round++;
    peer->attempt = 0;
    peer->is_pulling = peer->has_report = false;
}

/* ---- a link that carries bodies as they are -----------------------------------------------------------------------
 */

static void link_open(struct fedmote_line *line) { line->is_up = true; }

static int32_t link_poll(struct fedmote_line *line, uint32_t now, struct fedmote_frame *frame) {
    struct bench *bench = line->port->context;
    struct coordinator *peer = &bench->peer;
    (void)now;
    line->has_moved = peer->count > 0U;
    if (peer->count == 0U) {
        return FEDMOTE_OK;
    }
    const struct queued *queued = &peer->queue[peer->first];
    peer->first = (peer->first + 1U) % QUEUE;
    peer->count--;
    memcpy(line->receive, queued->body, queued->size);
    *frame = (struct fedmote_frame){FEDMOTE_CHANNEL_COORDINATOR, queued->kind, line->receive, queued->size};
    return FEDMOTE_LINK_FRAME;
}

static void link_send(struct fedmote_line *line, uint8_t channel, uint8_t kind, uint32_t size) {
    struct bench *bench = line->port->context;
    struct fedmote_message message;
    const int32_t status = fedmote_decode(&message, kind, line->transmit + FEDMOTE_BODY_OFFSET, size);
    check(bench, status == FEDMOTE_OK && channel == FEDMOTE_CHANNEL_COORDINATOR, "the device said something else");
    if (kind == FEDMOTE_KIND_HELLO) {
        hear_hello(bench, &message);
    } else if (kind == FEDMOTE_KIND_GET) {
        hear_get(bench, &message);
    } else if (kind == FEDMOTE_KIND_REPORT) {
        hear_report(bench, &message);
    } else if (kind == FEDMOTE_KIND_DATA) {
        hear_data(bench, &message);
    } else if (kind == FEDMOTE_KIND_REFUSE) {
        bench->peer.refusals++;
        bench->peer.last_refusal = message.number[FEDMOTE_FIELD_STATUS];
    }
}

static uint32_t link_wake_ms(const struct fedmote_line *line, uint32_t now) {
    (void)line;
    (void)now;
    return UINT32_MAX;
}

/* Sealing without seals: of a rekey it does what src/rekey.c does. */
static int32_t sealing_begin(struct fedmote_client *client) {
    return client->line.is_boot_counted ? FEDMOTE_OK : FEDMOTE_ERR_SLOT_IO;
}

static uint32_t sealing_close(struct fedmote_client *client, uint8_t channel, uint8_t kind, uint32_t size) {
    (void)client;
    (void)channel;
    (void)kind;
    return size;
}

static bool sealing_open(struct fedmote_client *client, struct fedmote_frame *frame) {
    struct fedmote_message message;
    if (frame->kind != FEDMOTE_KIND_REKEY) {
        return true;
    }
    if (fedmote_decode(&message, frame->kind, frame->body, frame->size) == FEDMOTE_OK &&
        client->port->journal->keep_key(client, message.bytes[FEDMOTE_FIELD_SECRET])) {
        fedmote_client_hello_in(client, 0);
    }
    return false;
}

static const struct fedmote_sealing test_sealing = {sealing_begin, sealing_close, sealing_open};

static const struct fedmote_link test_link = {link_open, link_poll, link_send, link_wake_ms};

/* ---- a device on it -----------------------------------------------------------------------------------------------
 */

static const struct fedmote_operator *const operators[] = {&fedmote_operator_fully_connected, NULL};

static struct fedmote_port make_port(struct bench *bench) {
    return (struct fedmote_port){
        .context = bench,
        .now_ms = port_now_ms,
        .random = port_random,
        .stream_read = port_stream,
        .stream_write = port_stream_write,
        .sample_count = port_sample_count,
        .sample_read = port_sample_read,
        .slot_bytes = bench->flash.regions[0].size,
        .slot_base = port_slot_base,
        .slot_erase = port_slot_erase,
        .slot_write = port_slot_write,
        .event = port_event,
        .operators = operators,
        .arithmetic = &fedmote_float32,
        .patching = &fedmote_difference_patching,
        .resuming = &fedmote_slot_resuming,
        .journal = &fedmote_flash_journal,
        .journal_bytes = bench->flash.regions[JOURNAL].size,
        .journal_base = port_journal_base,
        .journal_erase = port_journal_erase,
        .journal_write = port_journal_write,
        .sealing = &test_sealing,
    };
}

/* Which of the packages the device has installed, byte for byte; package_count where it has none. */
static uint32_t installed(struct bench *bench) {
    const struct fedmote_store *store = &client_of(bench)->store;
    if (!store->is_installed) {
        return bench->package_count;
    }
    const uint8_t *slot = bench->flash.regions[store->slot].bytes;
    for (uint32_t i = 0; i < bench->package_count; i++) {
        if (memcmp(slot, bench->packages[i].bytes, bench->packages[i].size) == 0) {
            return i;
        }
    }
    fail(bench, "what is installed is no package that was sent");
}

/* Power on: RAM holds noise, the flash what it held. */
static void boot(struct bench *bench, const struct fedmote_port *port) {
    struct fedmote_identity identity = {.id = "board-1", .site = "lab", .link = &test_link};
    if (bench->story == REKEYING) {
        identity.key = keys[0];
    }
    memset(&bench->device, 0x5A, sizeof bench->device);
    memset(bench->arena, 0x5A, sizeof bench->arena);
    bench->peer.count = 0;
    bench->peer.is_pulling = bench->peer.has_report = false;
    bench->boots++;
    const int32_t status = fedmote_init(&bench->device, port, &identity, bench->arena, sizeof bench->arena);
    check(bench, status == FEDMOTE_OK, "the device does not start");
    const struct fedmote_line *line = &client_of(bench)->line;
    check(bench, line->is_boot_counted, "the boot is not counted");
    check(bench, line->boot > bench->last_boot, "the boot is not higher than the last one");
    bench->last_boot = line->boot;
}

/* Steps until all rounds are done and the device has heard so. */
static void live(struct bench *bench) {
    for (uint32_t step = 0; step < MOST_STEPS; step++) {
        if (bench->peer.round > bench->peer.rounds && bench->peer.count == 0U &&
            client_of(bench)->state == FEDMOTE_STATE_IDLE) {
            return;
        }
        if (bench->steps++ == bench->off_at) {
            longjmp(*bench->flash.power, 1);
        }
        if (fedmote_step(&bench->device) == FEDMOTE_IDLE) {
            const uint32_t wake_ms = fedmote_wake_ms(&bench->device);
            bench->now += wake_ms < 60000U ? wake_ms : 60000U;
        }
        check(bench, true, "");
    }
    fail(bench, "the rounds do not end");
}

/* After a cut: old or new, whole; and the one before where a package was running unconfirmed. */
static void check_after_cut(struct bench *bench, bool was_running, uint32_t old) {
    const uint32_t now_installed = installed(bench);
    check(bench, now_installed < bench->package_count, "no package is installed any more");
    const bool is_old_or_new = now_installed == old || now_installed == (old + 1U) % bench->package_count;
    check(bench, is_old_or_new, "neither the old package nor the new one is installed");
    if (was_running && client_of(bench)->store.is_on_trial) {
        fail(bench, "a package that was running unconfirmed is still installed");
    }
}

static void arm(struct bench *bench, const struct cut *cut, uint32_t fail_at) {
    flash_arm(&bench->flash, cut->is_step ? FLASH_NEVER : cut->at, fail_at);
    bench->off_at = cut->is_step ? cut->at : FLASH_NEVER;
    bench->steps = 0;
}

/* Tells the story from the flash as it is. A cut that never comes ends `cuts`. */
static void tell_story(struct bench *bench, const struct cut *cuts, uint32_t fail_at) {
    const struct fedmote_port port = make_port(bench);
    jmp_buf power;
    volatile uint32_t next = 0;
    bench->flash.power = &power;
    arm(bench, &cuts[0], fail_at);
    if (setjmp(power) != 0) {
        const struct fedmote_store *store = &client_of(bench)->store;
        /* Noise where the cut came before the store was opened. */
        const bool was_running = client_of(bench)->port == &port && store->is_on_trial && store->is_tried;
        next++;
        check(bench, true, "");
        arm(bench, &cuts[next], FLASH_NEVER);
        boot(bench, &port);
        check_after_cut(bench, was_running,
                        bench->story >= JOURNALING ? 0U : (bench->peer.rounds - 2U) % bench->package_count);
    } else {
        boot(bench, &port);
    }
    live(bench);
}

/* ---- stories ------------------------------------------------------------------------------------------------------
 */

static struct blob read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    struct blob blob = {NULL, 0};
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        (void)printf("%s cannot be read\n", path);
        exit(2);
    }
    blob.size = (uint32_t)ftell(file);
    blob.bytes = malloc(blob.size);
    rewind(file);
    if (blob.bytes == NULL || fread(blob.bytes, 1, blob.size, file) != blob.size) {
        (void)printf("%s cannot be read\n", path);
        exit(2);
    }
    (void)fclose(file);
    return blob;
}

static const struct cut no_cuts[1] = {{false, FLASH_NEVER}};

/* The first round, on a new part: package 0 is there and confirmed. */
static void begin_story(struct bench *bench, uint8_t erased, uint32_t journal_bytes) {
    const uint32_t slot_bytes = bench->story == REST ? LARGE_SLOT_BYTES : SLOT_BYTES;
    const uint32_t sizes[FLASH_REGIONS] = {slot_bytes, slot_bytes, journal_bytes, journal_bytes};
    flash_init(&bench->flash, sizes, erased);
    bench->random = 1;
    bench->peer.round = bench->peer.rounds = 1;
    bench->what = "the first round";
    tell_story(bench, no_cuts, FLASH_NEVER);
    check(bench, installed(bench) == 0U && !client_of(bench)->store.is_on_trial, "the first package is not confirmed");
}

static void check_end(struct bench *bench, const struct coordinator *calm) {
    for (uint32_t round = 1; round <= calm->rounds; round++) {
        check(bench, bench->peer.counted[round] == 1U, "a round was counted not once");
        check(bench, bench->peer.update_crc[round] == calm->update_crc[round], "an update has other bytes");
    }
    check(bench, bench->peer.key == calm->key && (bench->story != REKEYING || calm->key == 2U), "another key is used");
    const uint32_t last = bench->story >= JOURNALING ? 0U : (calm->rounds - 1U) % bench->package_count;
    check(bench, installed(bench) == last, "the last package is not installed");
}

static void print(const char *name, uint32_t value) { (void)printf("%s %u\n", name, (unsigned)value); }

static void do_cuts(struct bench *bench, const struct bench *start, const struct bench *calm, bool is_step) {
    const uint32_t moments = is_step ? calm->steps : calm->flash.operations;
    const uint32_t window = FEDMOTE_LIMIT_WINDOW * FEDMOTE_CHUNK_MAX;
    uint32_t recalled = 0;
    uint32_t resumed = 0;
    uint32_t anew = 0; /* the package was sent again by more than a window */
    uint32_t most = 0; /* bytes that were sent again, otherwise, and in any case */
    uint32_t worst = 0;
    for (uint32_t at = 0; at < moments; at++) {
        const struct cut cuts[2] = {{is_step, at}, {false, FLASH_NEVER}};
        *bench = *start;
        bench->flash.random = at * 2654435761U + 1U;
        bench->what = is_step ? "a cut between steps" : "a cut";
        bench->index = at;
        tell_story(bench, cuts, FLASH_NEVER);
        check_end(bench, &calm->peer);
        check(bench, !client_of(bench)->store.is_on_trial, "the last package is still on trial");
        recalled += bench->recalled > 0U;
        resumed += bench->resumed > 0U;
        const uint32_t again = bench->served - calm->served;
        anew += again > window;
        most = again <= window && again > most ? again : most;
        worst = again > worst ? again : worst;
    }
    print("cuts", moments);
    print("recalled", recalled);
    print("resumed", resumed);
    print("anew", anew);
    print("again", most);
    print("worst", worst);
}

static struct cut draw_cut(const struct bench *calm, uint32_t *random) {
    const bool is_step = flash_draw(random) % 4U == 0U;
    return (struct cut){is_step, flash_draw(random) % (is_step ? calm->steps : calm->flash.operations)};
}

static void do_pairs(struct bench *bench, const struct bench *start, const struct bench *calm, uint32_t seed,
                     uint32_t count) {
    uint32_t random = seed;
    uint32_t both = 0;
    uint32_t recalled = 0;
    for (uint32_t i = 0; both < count; i++) { /* with some first cuts the second one does not come any more */
        const struct cut cuts[3] = {draw_cut(calm, &random), draw_cut(calm, &random), {false, FLASH_NEVER}};
        *bench = *start;
        bench->flash.random = flash_draw(&random);
        bench->what = "a pair of cuts, number";
        bench->index = i;
        tell_story(bench, cuts, FLASH_NEVER);
        check_end(bench, &calm->peer);
        both += bench->boots == start->boots + 3U;
        recalled += bench->recalled > 0U;
    }
    print("pairs", both);
    print("recalled", recalled);
}

/* What the failed operation must have led to: whether the round was refused for it, and whether the port was told. */
static void check_told(struct bench *bench, const struct bench *start, bool was_booting) {
    const struct flash_model *flash = &bench->flash;
    const uint32_t marks_at = flash->regions[0].size - FEDMOTE_SLOT_END_BYTES;
    const bool is_slot = flash->failed_region < JOURNAL;
    const bool is_mark = is_slot && !flash->is_failed_erase && flash->failed_offset >= marks_at &&
                         flash->failed_offset < marks_at + (FEDMOTE_TRIALS + 1U) * FLASH_UNIT;
    const bool is_confirmation = is_mark && flash->failed_offset == marks_at + FEDMOTE_TRIALS * FLASH_UNIT;
    const bool is_harmless = was_booting || (is_mark && flash->has_effect); /* done at the second try, or done */
    check(bench, flash->has_failed, "the operation that was to fail did not come");
    check(bench, (bench->peer.refusals > 0U) == (is_slot && !is_confirmation && !is_harmless),
          "refused, or not refused");
    check(bench, (bench->errors_told > start->errors_told) == !is_harmless, "told, or not told");
    if (bench->peer.refusals > 0U) {
        check(bench, bench->peer.last_refusal == (uint32_t)-FEDMOTE_ERR_SLOT_IO, "refused for another reason");
    }
}

static void do_errors(struct bench *bench, const struct bench *start, const struct bench *calm,
                      uint32_t boot_operations) {
    const uint32_t operations = calm->flash.operations;
    uint32_t refused = 0;
    for (uint32_t i = 0; i < 2U * operations; i++) {
        *bench = *start;
        bench->flash.has_effect = i % 2U != 0U;
        bench->what = bench->flash.has_effect ? "an error with effect" : "an error without effect";
        bench->index = i / 2U;
        tell_story(bench, no_cuts, bench->index);
        check_end(bench, &calm->peer);
        check(bench, bench->boots == start->boots + 1U, "the device has started anew");
        check_told(bench, start, bench->index < boot_operations);
        refused += bench->peer.refusals > 0U;
    }
    print("errors", 2U * operations);
    print("refused", refused);
}

static void print_wear(const struct bench *bench, const struct bench *start) {
    const struct flash_region *regions = bench->flash.regions;
    for (uint32_t region = 0; region < FLASH_REGIONS; region++) {
        const uint32_t erases = flash_wear(&bench->flash, region) - flash_wear(&start->flash, region);
        (void)printf("erases_%u %u\nwrites_%u %u\n", (unsigned)region, (unsigned)erases, (unsigned)region,
                     (unsigned)(regions[region].calls - start->flash.regions[region].calls));
    }
}

static void do_accidents(struct bench *bench, const struct bench *start, const char *what, uint32_t seed,
                         uint32_t count) {
    static struct bench calm;
    calm = *start;
    const struct fedmote_port port = make_port(&calm);
    calm.what = "without an accident";
    flash_arm(&calm.flash, FLASH_NEVER, FLASH_NEVER);
    boot(&calm, &port);
    const uint32_t boot_operations = calm.flash.operations;
    calm = *start;
    tell_story(&calm, no_cuts, FLASH_NEVER);
    print("operations", calm.flash.operations);
    print("steps", calm.steps);
    if (strcmp(what, "cuts") == 0 || strcmp(what, "steps") == 0) {
        do_cuts(bench, start, &calm, what[0] == 's');
    } else if (strcmp(what, "pairs") == 0) {
        do_pairs(bench, start, &calm, seed, count);
    } else if (strcmp(what, "errors") == 0) {
        do_errors(bench, start, &calm, boot_operations);
    } else {
        print_wear(&calm, start);
    }
}

int main(int argument_count, char **arguments) {
    static struct bench bench, start;
    const char *stories[] = {"whole", "rest", "difference", "journal", "keys"};
    if (argument_count < 8) {
        (void)printf("usage: flash_accidents STORY ERASED TEAR WHAT SEED COUNT PACKAGE...\n");
        return 2;
    }
    while (strcmp(arguments[1], stories[start.story]) != 0) {
        start.story = (enum story)((int)start.story + 1);
    }
    const char *what = arguments[4];
    const uint32_t seed = (uint32_t)strtoul(arguments[5], NULL, 10);
    const uint32_t count = (uint32_t)strtoul(arguments[6], NULL, 10);
    const bool is_wear = strcmp(what, "wear") == 0;
    for (int i = 7; i < argument_count; i++) {
        if (start.story == DIFFERENCE && i == argument_count - 1) {
            start.difference = read_file(arguments[i]);
        } else {
            start.packages[start.package_count++] = read_file(arguments[i]);
        }
    }
    begin_story(&start, (uint8_t)strtoul(arguments[2], NULL, 0),
                is_wear                     ? LARGE_JOURNAL_BYTES
                : start.story == JOURNALING ? SMALL_JOURNAL_BYTES
                : start.story == REKEYING   ? KEYS_JOURNAL_BYTES
                                            : LARGE_JOURNAL_BYTES);
    start.flash.tear = (enum flash_tear)strtoul(arguments[3], NULL, 10);
    start.peer.rounds = is_wear ? count : start.story >= JOURNALING ? 5U : 2U;
    do_accidents(&bench, &start, what, seed, count);
    return 0;
}
