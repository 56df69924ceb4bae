/* SPDX-License-Identifier: Apache-2.0
 *
 * fedmote-device: the federated device as a process. Identity and samples are files in the forms of protocol/SPEC.md,
 * section 8.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "fedmote/fedmote.h"
#include "fedmote_board.h"
#include "monocypher_port.h"
#include "posix.h"
#include "samples_region.h"

#define EXIT_USAGE 2
#define EXIT_BOARD 3
#define LONGEST_WAIT_MS 1000U

static const char usage[] =
    "usage: fedmote-device --identity FILE --samples FILE [--flash FILE] [--cache BYTES] [--arena BYTES] [--clock-ms "
    "START] "
    "[--events]\n"
    "                      (--connect HOST:PORT | --serial PATH | --pty)\n"
    "  --identity  identity region; its link says whether the stream speaks MQTT or serial frames\n"
    "  --samples   samples region\n"
    "  --flash     file in the place of flash, made where absent: package slots and journal; without it packages live "
    "in\n"
    "              memory and there is no journal; needed where the identity has keys\n"
    "  --cache     room for the embeddings that the arena does not hold; without it they are computed again\n"
    "  --arena     bytes of memory for everything; without it all that the board has\n"
    "  --clock-ms  what the clock shows at the start; it wraps at 2^32\n"
    "  --power-cut ends the process as a power cut does, after so many steps that did something\n"
    "  --connect   TCP stream: a broker, or a peer that speaks serial frames\n"
    "  --serial    serial port or pseudo terminal\n"
    "  --pty       makes a pseudo terminal and prints the path of its other end\n"
    "  --events    writes what happens to standard error, one line each: event value\n";

struct options {
    const char *identity, *samples, *flash, *cache, *arena, *clock_ms, *power_cut, *target;
    enum stream_kind kind;
    bool has_stream;
    bool is_telling;
};

struct board {
    const struct fedmote *device; /* for what an event leaves out */
    struct stream stream;
    struct flash flash;
    struct cache cache;
    struct samples_region samples;
    uint32_t clock_offset_ms;
};

static uint32_t port_now_ms(void *context) { return posix_now_ms() + ((struct board *)context)->clock_offset_ms; }

static uint32_t port_random(void *context) {
    (void)context;
    return posix_random();
}

static int32_t port_stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    return stream_read(&((struct board *)context)->stream, bytes, capacity);
}

static int32_t port_stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    return stream_write(&((struct board *)context)->stream, bytes, size);
}

static uint32_t port_sample_count(void *context) { return ((struct board *)context)->samples.count; }

static int32_t port_sample_read(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label) {
    return samples_region_read(&((struct board *)context)->samples, index, x, x_bytes, label);
}

static const uint8_t *port_slot_base(void *context, uint32_t slot) {
    return flash_slot_base(&((struct board *)context)->flash, slot);
}

static int32_t port_slot_erase(void *context, uint32_t slot) {
    return flash_slot_erase(&((struct board *)context)->flash, slot);
}

static int32_t port_slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    return flash_slot_write(&((struct board *)context)->flash, slot, offset, bytes, size);
}

static const uint8_t *port_journal_base(void *context, uint32_t region) {
    return flash_journal_base(&((struct board *)context)->flash, region);
}

static int32_t port_journal_erase(void *context, uint32_t region) {
    return flash_journal_erase(&((struct board *)context)->flash, region);
}

static int32_t port_journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes,
                                  uint32_t size) {
    return flash_journal_write(&((struct board *)context)->flash, region, offset, bytes, size);
}

static const int8_t *port_cache_base(void *context) { return (const int8_t *)((struct board *)context)->cache.bytes; }

static int32_t port_cache_erase(void *context) { return cache_erase(&((struct board *)context)->cache); }

static int32_t port_cache_write(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    return cache_write(&((struct board *)context)->cache, offset, bytes, size);
}

static void port_event(void *context, int32_t event, int32_t value) {
    (void)fprintf(stderr, "%d %d\n", (int)event, (int)value);
    if (event == (int32_t)FEDMOTE_EVENT_ERROR && value == FEDMOTE_ERR_ARENA) {
        struct fedmote_info info;
        fedmote_status(((const struct board *)context)->device, &info);
        (void)fprintf(stderr, "the package needs an arena of %u bytes, %u are there\n", (unsigned)info.arena_required,
                      (unsigned)info.arena_bytes);
    }
}

/* Where a value option is stored; NULL for an unknown one. */
static const char **value_of(struct options *options, const char *name) {
    if (strcmp(name, "--identity") == 0) {
        return &options->identity;
    }
    if (strcmp(name, "--samples") == 0) {
        return &options->samples;
    }
    if (strcmp(name, "--flash") == 0) {
        return &options->flash;
    }
    if (strcmp(name, "--cache") == 0) {
        return &options->cache;
    }
    if (strcmp(name, "--arena") == 0) {
        return &options->arena;
    }
    if (strcmp(name, "--clock-ms") == 0) {
        return &options->clock_ms;
    }
    if (strcmp(name, "--power-cut") == 0) {
        return &options->power_cut;
    }
    if (strcmp(name, "--connect") == 0 || strcmp(name, "--serial") == 0) {
        options->kind = name[2] == 'c' ? STREAM_TCP : STREAM_SERIAL;
        options->has_stream = true;
        return &options->target;
    }
    return NULL;
}

/* False after it has said what is wrong. */
static bool parse(struct options *options, int count, char **arguments) {
    memset(options, 0, sizeof *options);
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--events") == 0) {
            options->is_telling = true;
        } else if (strcmp(arguments[i], "--pty") == 0) {
            options->kind = STREAM_PTY;
            options->has_stream = true;
        } else {
            const char **value = value_of(options, arguments[i]);
            if (value == NULL || i + 1 == count) {
                (void)fprintf(stderr, "fedmote-device: %s %s\n%s", value == NULL ? "unknown option" : "no value for",
                              arguments[i], usage);
                return false;
            }
            *value = arguments[++i];
        }
    }
    if (options->identity == NULL || options->samples == NULL || !options->has_stream) {
        (void)fprintf(stderr, "fedmote-device: %s is missing\n%s",
                      options->identity == NULL  ? "--identity"
                      : options->samples == NULL ? "--samples"
                                                 : "one of --connect, --serial, --pty",
                      usage);
        return false;
    }
    return true;
}

static bool complain(const char *path, const char *reason) {
    (void)fprintf(stderr, "fedmote-device: %s: %s\n", path, reason);
    return false;
}

/* A status has its name in fedmote_schema.h. */
static bool complain_status(const char *path, int32_t status) {
    (void)fprintf(stderr, "fedmote-device: %s: status %d\n", path, (int)status);
    return false;
}

static bool open_identity(struct fedmote_identity *identity, char *text, const char *path) {
    struct file_map file;
    if (!file_map_open(&file, path)) {
        return complain(path, strerror(errno));
    }
    const int32_t status = fedmote_identity_read(identity, text, file.bytes, (uint32_t)file.size);
    if (status != FEDMOTE_OK) {
        return complain_status(path, status);
    }
    identity->board = FEDMOTE_BOARD_NAME;
    return true;
}

static bool read_number(uint32_t *number, const char *text) {
    char *end = NULL;
    errno = 0;
    const unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || value > UINT32_MAX) {
        return complain(text, "not a number from 0 to 4294967295");
    }
    *number = (uint32_t)value;
    return true;
}

/* Without the option the board has no cache. */
static bool open_cache(struct cache *cache, const char *text) {
    uint32_t size = 0;
    if (text == NULL) {
        return true;
    }
    if (!read_number(&size, text)) {
        return false;
    }
    return size == 0 || cache_open(cache, size) || complain(text, "there is not so much memory");
}

/* Without the option the clock shows how long the machine has been on. */
static bool set_clock(struct board *board, const char *text) {
    uint32_t start_ms = 0;
    if (text == NULL) {
        return true;
    }
    if (!read_number(&start_ms, text)) {
        return false;
    }
    board->clock_offset_ms = start_ms - posix_now_ms();
    return true;
}

static bool open_board(struct board *board, const struct options *options) {
    struct file_map file;
    if (!file_map_open(&file, options->samples)) {
        return complain(options->samples, strerror(errno));
    }
    const int32_t status =
        samples_region_open(&board->samples, file.bytes, (uint32_t)file.size, FEDMOTE_BOARD_MAX_SAMPLES);
    if (status != FEDMOTE_OK) {
        return complain_status(options->samples, status);
    }
    board->flash.slot_bytes = FEDMOTE_BOARD_SLOT_BYTES;
    board->flash.journal_bytes = FEDMOTE_BOARD_JOURNAL_BYTES;
    if (!flash_open(&board->flash, options->flash)) {
        return complain(options->flash, errno == EINVAL ? "not a flash file of this board" : strerror(errno));
    }
    if (!open_cache(&board->cache, options->cache) || !set_clock(board, options->clock_ms)) {
        return false;
    }
    if (!stream_init(&board->stream, options->kind, options->target)) {
        return complain(options->kind == STREAM_PTY ? "--pty" : options->target, "cannot be opened; TCP is HOST:PORT");
    }
    if (options->kind == STREAM_PTY) {
        (void)printf("%s\n", board->stream.target);
        (void)fflush(stdout);
    }
    return true;
}

/* `steps_left`: until the power goes; 0: it stays. */
static void run(struct fedmote *device, struct board *board, uint32_t steps_left) {
    for (;;) {
        if (fedmote_step(device) == FEDMOTE_IDLE) {
            const uint32_t wake_ms = fedmote_wake_ms(device);
            stream_wait(&board->stream, wake_ms < LONGEST_WAIT_MS ? wake_ms : LONGEST_WAIT_MS);
        } else if (steps_left > 0U && --steps_left == 0U) {
            (void)raise(SIGKILL);
        }
    }
}

int main(int count, char **arguments) {
    static struct fedmote device;
    static struct board board;
    static char identity_text[FEDMOTE_IDENTITY_TEXT_BYTES];
    static uint8_t arena[FEDMOTE_BOARD_ARENA_BYTES] __attribute__((aligned(16)));
    struct fedmote_identity identity;
    struct options options;
    uint32_t steps_left = 0, arena_bytes = sizeof arena;

    if (count == 2 && strcmp(arguments[1], "--help") == 0) {
        (void)fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (!parse(&options, count, arguments) ||
        (options.power_cut != NULL && !read_number(&steps_left, options.power_cut)) ||
        (options.arena != NULL && !read_number(&arena_bytes, options.arena))) {
        return EXIT_USAGE;
    }
    if (arena_bytes > sizeof arena) {
        (void)complain(options.arena, "more bytes of arena than this board has");
        return EXIT_USAGE;
    }
    (void)signal(SIGPIPE, SIG_IGN); /* a broken stream is told by write() */
    if (!open_identity(&identity, identity_text, options.identity) || !open_board(&board, &options)) {
        return EXIT_USAGE;
    }
    static const struct fedmote_operator *const operators[] = {FEDMOTE_BOARD_OPERATORS, NULL};
    const bool has_cache = board.cache.size > 0U;
    const struct fedmote_port port = {
        .context = &board,
        .now_ms = port_now_ms,
        .random = port_random,
        .stream_read = port_stream_read,
        .stream_write = port_stream_write,
        .sample_count = port_sample_count,
        .sample_read = port_sample_read,
        .slot_bytes = FEDMOTE_BOARD_SLOT_BYTES,
        .slot_base = port_slot_base,
        .slot_erase = port_slot_erase,
        .slot_write = port_slot_write,
        .hash = FEDMOTE_PORT_HASH,
        .event = options.is_telling ? port_event : NULL,
        .operators = operators,
        .arithmetic = &FEDMOTE_BOARD_ARITHMETIC,
        .cache = has_cache ? &fedmote_cache_region : NULL,
        .cache_bytes = board.cache.size,
        .cache_base = has_cache ? port_cache_base : NULL,
        .cache_erase = has_cache ? port_cache_erase : NULL,
        .cache_write = has_cache ? port_cache_write : NULL,
        .patching = &fedmote_difference_patching,
        .journal = options.flash != NULL ? &fedmote_flash_journal : NULL,
        .journal_bytes = FEDMOTE_BOARD_JOURNAL_BYTES,
        .journal_base = port_journal_base,
        .journal_erase = port_journal_erase,
        .journal_write = port_journal_write,
        .sealing = &fedmote_message_sealing,
        .crypto = FEDMOTE_PORT_CRYPTO,
        .signing = FEDMOTE_PORT_SIGNING,
        .verify = FEDMOTE_PORT_VERIFY,
        .masking = FEDMOTE_PORT_MASKING,
        .agree = FEDMOTE_PORT_AGREE,
    };
    if (identity.key != NULL && (port.crypto == NULL || port.journal == NULL)) {
        (void)complain(options.identity, port.crypto == NULL
                                             ? "has keys, and this program was built without cryptography"
                                             : "has keys; then boots are counted, which needs --flash");
        return EXIT_USAGE;
    }
    board.device = &device;
    const int32_t status = fedmote_init(&device, &port, &identity, arena, arena_bytes);
    if (status == FEDMOTE_ERR_ARENA) {
        (void)fprintf(stderr, "fedmote-device: an arena of %u bytes; the link alone needs %u\n", (unsigned)arena_bytes,
                      (unsigned)fedmote_link_bytes());
        return EXIT_BOARD;
    }
    if (status != FEDMOTE_OK) {
        (void)complain_status(options.identity, status);
        return EXIT_BOARD;
    }
    if (identity.key != NULL && !flash_sync(&board.flash)) { /* the number of this boot, before it seals anything */
        (void)complain(options.flash, strerror(errno));
        return EXIT_BOARD;
    }
    run(&device, &board, steps_left);
    return EXIT_SUCCESS;
}
