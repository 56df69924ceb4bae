/* SPDX-License-Identifier: Apache-2.0
 *
 * A port to copy and fill: every callback of struct fedmote_port with what it must do. As it stands it is a board
 * without a line, without samples and with slots in RAM, which compiles and runs and learns nothing.
 */
#include "port.h"

#include <string.h>

#define SLOT_BYTES 8192U /* the largest package, plus 48; fedmote_port.h says which multiples writes have */

#define JOURNAL_BYTES 1024U

static uint8_t slots[2][SLOT_BYTES] __attribute__((aligned(16)));
static uint8_t journal[2][JOURNAL_BYTES]
    __attribute__((aligned(8))); /* in RAM it is of no use: name it once it is flash */

/* A free-running millisecond counter: a timer interrupt, an RTOS tick. It may wrap. */
static uint32_t now_ms(void *context) {
    (void)context;
    static uint32_t calls;
    return ++calls;
}

/* Different at every boot and on every board: a random number generator, or the low bits of an open analog input
 * stirred with a serial number. Not used for keys. */
static uint32_t random_u32(void *context) {
    (void)context;
    static uint32_t state = 1U;
    state = state * 1664525U + 1013904223U;
    return state;
}

/* Hands over received bytes, at most `capacity`, without waiting; 0 where there are none. Let an interrupt or DMA fill
 * a ring of at least FEDMOTE_BODY_MAX + 128 bytes: one step may take as long as FEDMOTE_MACS_PER_STEP
 * multiply-accumulates. */
static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    (void)bytes;
    (void)capacity;
    return 0;
}

/* Takes as many bytes as fit now and says how many; never waits. A socket that broke returns a number below -127 once.
 */
static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    (void)bytes;
    (void)size;
    return 0;
}

/* How many labelled samples the board holds now. */
static uint32_t sample_count(void *context) {
    (void)context;
    return 0U;
}

/* Copies sample `index` in the encoder's input quantization, channels last; must give the same sample until the round
 * is over. */
static int32_t sample_read(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label) {
    (void)context;
    (void)index;
    memset(x, 0, x_bytes);
    *label = 0U;
    return 0;
}

/* Where a slot can be read as memory: memory-mapped flash, or RAM. */
static const uint8_t *slot_base(void *context, uint32_t slot) {
    (void)context;
    return slots[slot];
}

/* Erases the sectors of one slot; the other one must not share a sector with it. */
static int32_t slot_erase(void *context, uint32_t slot) {
    (void)context;
    memset(slots[slot], 0xFF, SLOT_BYTES);
    return 0;
}

/* Programs bytes of an erased slot, and returns when they can be read back. */
static int32_t slot_write(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    memcpy(slots[slot] + offset, bytes, size);
    return 0;
}

/* Two regions of a page or more each, of flash that is not of a slot. */
static const uint8_t *journal_base(void *context, uint32_t region) {
    (void)context;
    return journal[region];
}

static int32_t journal_erase(void *context, uint32_t region) {
    (void)context;
    memset(journal[region], 0xFF, JOURNAL_BYTES);
    return 0;
}

static int32_t journal_write(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    memcpy(journal[region] + offset, bytes, size);
    return 0;
}

/* The operators of the encoders that this board is to run: what is not named here takes no flash. */
static const struct fedmote_operator *const operators[] = {&fedmote_operator_conv_2d,
                                                           &fedmote_operator_depthwise_conv_2d,
                                                           &fedmote_operator_fully_connected,
                                                           &fedmote_operator_average_pool_2d,
                                                           &fedmote_operator_mean,
                                                           NULL};

const struct fedmote_port board_port = {
    .now_ms = now_ms,
    .random = random_u32,
    .stream_read = stream_read,
    .stream_write = stream_write,
    .sample_count = sample_count,
    .sample_read = sample_read,
    .slot_bytes = SLOT_BYTES,
    .slot_base = slot_base,
    .slot_erase = slot_erase,
    .slot_write = slot_write,
    .hash = NULL,  /* packages are then checked by CRC-32 only */
    .event = NULL, /* a place for a log or an LED */
    .operators = operators,
    .arithmetic = &fedmote_int16, /* &fedmote_float32 on a core with an FPU */
    .patching = NULL,             /* &fedmote_difference_patching: new packages may come as differences */
    .resuming = NULL,             /* &fedmote_slot_resuming: a package's fetch goes on after a reset */
    .journal = NULL,              /* &fedmote_flash_journal: boots are counted, and finished updates outlive a reset */
    .journal_bytes = JOURNAL_BYTES,
    .journal_base = journal_base,
    .journal_erase = journal_erase,
    .journal_write = journal_write,
    .sealing = NULL, /* &fedmote_renewable_sealing with .crypto and a journal: for devices whose identity has keys */
};
