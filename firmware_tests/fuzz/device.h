/* SPDX-License-Identifier: Apache-2.0
 *
 * The whole device behind a serial line, for the targets that drive it. The input is a script of what its peers do:
 *
 *     0 to 1, kind, size u16, body     a frame of that channel, made right
 *     2, size u8, bytes                bytes on the line as they are
 *     3, tenths u8                     so much time passes, in tenths of a second
 *     4                                the stream breaks
 *     5                                the device is reset; its slots stay
 *     6 and more                       the target's own
 *
 * A package is installed at first: that of the file which the environment names in FEDMOTE_FUZZ_PACKAGE. Between any
 * two lines of the script the device is stepped until it is idle, which it must become, and its flash is never written
 * twice.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include "all_operators.h"
#include "crc32.h"
#include "fedmote/fedmote.h"
#include "fuzz.h"
#include "store.h"

enum {
    SLOT = 8192,
    ARENA = 16384,
    WIRE = 8192,
    SAMPLES = 6,
    STEPS = 20000,
    TENTH_MS = 100,
    LOST = -200,
    AROUND_BODY = 10 /* bytes of header and checksum of a frame */
};

struct board {
    uint32_t now, random;
    uint8_t wire[WIRE]; /* what the device has not read yet */
    uint32_t wire_size;
    bool is_broken;
    uint8_t *slot[2];
    uint8_t *is_written[2]; /* a byte for each unit of 8 */
};

static uint32_t board_now(void *context) { return ((struct board *)context)->now; }

static uint32_t board_random(void *context) {
    struct board *board = context;
    board->random = board->random * 1664525U + 1013904223U;
    return board->random;
}

static int32_t board_read(void *context, uint8_t *bytes, uint32_t capacity) {
    struct board *board = context;
    if (board->is_broken) {
        board->is_broken = false;
        return LOST;
    }
    uint32_t count = capacity < board->wire_size ? capacity : board->wire_size;
    memcpy(bytes, board->wire, count);
    board->wire_size -= count;
    memmove(board->wire, board->wire + count, board->wire_size);
    return (int32_t)count;
}

static int32_t board_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    must(bytes != NULL, "bytes from nowhere");
    return (int32_t)size;
}

static uint32_t board_sample_count(void *context) {
    (void)context;
    return SAMPLES;
}

static int32_t board_sample_read(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label) {
    (void)context;
    must(index < SAMPLES, "a sample that does not exist");
    memset(x, (int)(index * 9), x_bytes);
    *label = index % 2;
    return 0;
}

static const uint8_t *board_slot_base(void *context, uint32_t slot) {
    must(slot < 2, "a slot that does not exist");
    return ((struct board *)context)->slot[slot];
}

static int32_t board_slot_erase(void *context, uint32_t slot) {
    struct board *board = context;
    must(slot < 2, "a slot that does not exist");
    memset(board->slot[slot], 0xFF, SLOT);
    memset(board->is_written[slot], 0, SLOT / 8);
    return 0;
}

static int32_t board_slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    struct board *board = context;
    must(slot < 2 && offset % 8 == 0 && offset <= SLOT && size <= SLOT - offset, "a write outside its slot");
    must(size % 8 == 0 || offset + size == SLOT, "a write that ends inside a unit");
    for (uint32_t unit = offset / 8; unit < (offset + size + 7) / 8; unit++) {
        must(board->is_written[slot][unit] == 0, "a unit is written twice");
        board->is_written[slot][unit] = 1;
    }
    memcpy(board->slot[slot] + offset, bytes, size);
    return 0;
}

static void board_open(struct board *board) {
    *board = (struct board){.random = 1};
    for (uint32_t slot = 0; slot < 2; slot++) {
        board->slot[slot] = block_of(NULL, SLOT);
        board->is_written[slot] = block_of(NULL, SLOT / 8);
        (void)board_slot_erase(board, slot);
    }
}

static void board_close(struct board *board) {
    for (uint32_t slot = 0; slot < 2; slot++) {
        free(board->slot[slot]);
        free(board->is_written[slot]);
    }
}

static void install(const struct fedmote_port *port) {
    static uint8_t package[SLOT];
    static uint32_t size;
    const char *path = getenv("FEDMOTE_FUZZ_PACKAGE");
    if (size == 0) {
        FILE *file = path != NULL ? fopen(path, "rb") : NULL;
        must(file != NULL, "FEDMOTE_FUZZ_PACKAGE names no file");
        size = (uint32_t)fread(package, 1, sizeof package, file);
        fclose(file);
    }
    struct fedmote_store store;
    struct fedmote_package opened;
    must(fedmote_store_open(&store, port, &opened) == FEDMOTE_ERR_NO_PACKAGE, "a package in an empty slot");
    must(fedmote_store_begin(&store, size) == FEDMOTE_OK &&
             fedmote_store_write(&store, 0, package, size) == FEDMOTE_OK &&
             fedmote_store_verify(&store, size, package + 16, &opened) == FEDMOTE_OK &&
             fedmote_store_commit(&store, size, 0) == FEDMOTE_OK,
         "the package cannot be installed");
}

/* ---- the script ---------------------------------------------------------------------------------------------------
 */

static void put(struct board *board, const uint8_t *bytes, uint32_t size) {
    uint32_t room = WIRE - board->wire_size;
    size = size < room ? size : room;
    memcpy(board->wire + board->wire_size, bytes, size);
    board->wire_size += size;
}

/* COBS, a group at a time. */
static void put_frame(struct board *board, const uint8_t *raw, uint32_t size) {
    static const uint8_t delimiter = 0;
    for (uint32_t begin = 0; begin <= size;) {
        uint32_t count = 0;
        while (begin + count < size && count < 254 && raw[begin + count] != 0) {
            count++;
        }
        uint8_t code = (uint8_t)(count + 1);
        put(board, &code, 1);
        put(board, raw + begin, count);
        begin += count == 254 ? count : count + 1;
        if (count == 254 && begin == size) {
            break;
        }
    }
    put(board, &delimiter, 1);
}

static void put_message(struct board *board, uint8_t channel, uint8_t kind, const uint8_t *body, uint32_t size) {
    static uint8_t raw[FEDMOTE_BODY_MAX + 64];
    raw[0] = channel;
    raw[1] = kind;
    raw[2] = raw[3] = 0;
    raw[4] = (uint8_t)size;
    raw[5] = (uint8_t)(size >> 8);
    memcpy(raw + 6, body, size);
    uint32_t crc = fedmote_crc32(0, raw, 6 + size);
    for (uint32_t i = 0; i < 4; i++) {
        raw[6 + size + i] = (uint8_t)(crc >> 8 * i);
    }
    put_frame(board, raw, size + AROUND_BODY);
}

static void speak(struct board *board, uint8_t channel, struct input *input) {
    const uint8_t kind = (uint8_t)take(input, 1);
    uint32_t size = take(input, 2);
    size = size < FEDMOTE_BODY_MAX + 32 ? size : FEDMOTE_BODY_MAX + 32;
    size = size < input->left ? size : (uint32_t)input->left;
    put_message(board, channel, kind, input->bytes, size);
    input->bytes += size;
    input->left -= size;
}

static void go_on(struct fedmote *device) {
    uint32_t steps = 0;
    while (fedmote_step(device) == FEDMOTE_BUSY) {
        must(++steps < STEPS, "the device does not become idle");
    }
    (void)fedmote_wake_ms(device);
    struct fedmote_info info;
    fedmote_status(device, &info);
    must(info.state <= FEDMOTE_STATE_REPORT && info.where != NULL, "a state that does not exist");
}

/* What a device of this board is made of; a target adds its own. */
static struct fedmote_port port_of(struct board *board) {
    return (struct fedmote_port){
        .context = board,
        .now_ms = board_now,
        .random = board_random,
        .stream_read = board_read,
        .stream_write = board_write,
        .sample_count = board_sample_count,
        .sample_read = board_sample_read,
        .slot_bytes = SLOT,
        .slot_base = board_slot_base,
        .slot_erase = board_slot_erase,
        .slot_write = board_slot_write,
        .operators = all_operators,
        .arithmetic = &fedmote_float32,
        .patching = &fedmote_difference_patching,
        .resuming = &fedmote_slot_resuming,
    };
}

static void act(struct board *board, uint32_t what, struct input *input);

/* Plays a script; `act` does the lines that are the target's own. */
static void play(struct board *board, const struct fedmote_port *port, const struct fedmote_identity *identity,
                 const uint8_t *data, size_t size) {
    install(port);
    uint8_t *arena = block_of(NULL, ARENA);
    static struct fedmote device;
    must(fedmote_init(&device, port, identity, arena, ARENA) == FEDMOTE_OK, "the device does not begin");
    for (struct input input = {data, size}; input.left > 0;) {
        uint32_t what = take(&input, 1);
        if (what <= 1) {
            speak(board, (uint8_t)what, &input);
        } else if (what == 2) {
            uint32_t count = take(&input, 1);
            count = count < input.left ? count : (uint32_t)input.left;
            put(board, input.bytes, count);
            input.bytes += count;
            input.left -= count;
        } else if (what == 3) {
            board->now += TENTH_MS * take(&input, 1);
        } else if (what == 4) {
            board->is_broken = true;
        } else if (what == 5) {
            must(fedmote_init(&device, port, identity, arena, ARENA) == FEDMOTE_OK, "the device does not begin again");
        } else {
            act(board, what, &input);
        }
        go_on(&device);
    }
    free(arena);
}

#endif
