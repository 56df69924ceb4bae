/* SPDX-License-Identifier: Apache-2.0
 *
 * Every state that the receiver of a transfer (src/transfer.c) can reach, for blobs and windows up to a size: from each
 * state, every chunk that a hostile or honest sender could send of the blob, and questions. In all of them:
 *
 *     a chunk is taken only where it lies on the grid, inside the blob, with the length of its place, and was not
 * taken; what the receiver asks for is what is missing of its window, and an offer of the same blob answers just that;
 *     the window moves on exactly when all of it has come; all has come when nothing is missing, and not before;
 *     from every state the honest chunks of one question per window, in any order, bring the transfer to its end.
 *
 *     chunks CHUNKS WINDOW      blobs of 1 to CHUNKS chunks (the last one of 1, of all but one, and of all its bytes)
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transfer.h"

enum { CHUNK = FEDMOTE_CHUNK_MAX, CHUNKS_MAX = 20, HANDLE = 77 };

/* A state: the receiver, and which chunks have come (bit i: chunk i). The receiver is a function of the latter; that is
 * checked, so the visited set is one of bits. */
static struct fedmote_receiver reached[1U << CHUNKS_MAX];
static uint8_t is_reached[1U << CHUNKS_MAX];
static uint32_t waiting[1U << CHUNKS_MAX];
static unsigned long states, transitions;

static void must(bool is_so, const char *what) {
    if (!is_so) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static bool is_same(const struct fedmote_receiver *one, const struct fedmote_receiver *other) {
    return one->handle == other->handle && one->size == other->size && one->window == other->window &&
           one->offset == other->offset && one->missing == other->missing;
}

/* Sends one chunk; returns whether it was taken. */
static bool send(struct fedmote_receiver *receiver, uint32_t handle, uint32_t offset, uint32_t size) {
    struct fedmote_message data;
    fedmote_message_begin(&data, FEDMOTE_KIND_DATA);
    fedmote_message_number(&data, FEDMOTE_FIELD_HANDLE, handle);
    fedmote_message_number(&data, FEDMOTE_FIELD_OFFSET, offset);
    fedmote_message_string(&data, FEDMOTE_FIELD_DATA, NULL, size);
    struct fedmote_receiver before = *receiver;
    int32_t bit = fedmote_receiver_accept(receiver, &data);
    must(is_same(&before, receiver), "looking at a chunk changes the receiver");
    transitions++;
    if (bit < 0) {
        return false;
    }
    must((receiver->missing >> bit & 1) != 0, "a bit that was not missing");
    fedmote_receiver_done(receiver, bit, 0);
    fedmote_receiver_go_on(receiver, 0);
    return true;
}

static uint32_t length_of(const struct fedmote_receiver *receiver, uint32_t chunk) {
    uint32_t left = receiver->size - chunk * CHUNK;
    return left < CHUNK ? left : CHUNK;
}

static void check_state(const struct fedmote_receiver *receiver, uint32_t come, uint32_t chunks) {
    uint32_t first = receiver->offset / CHUNK;
    must(receiver->offset % (receiver->window * CHUNK) == 0 && first < chunks, "a window off its grid");
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        bool has_come = (come >> chunk & 1) != 0;
        bool is_in_window = chunk >= first && chunk < first + receiver->window;
        bool is_missing = is_in_window && (receiver->missing >> (chunk - first) & 1) != 0;
        must(is_missing == (is_in_window && !has_come), "the mask is not what is missing of the window");
        must(chunk >= first || has_come, "a window was left behind with a hole");
        must(chunk < first + receiver->window || !has_come, "a chunk was taken before its window");
    }
    bool is_whole = come == (chunks == 32 ? UINT32_MAX : (1U << chunks) - 1);
    must((receiver->missing == 0) == is_whole, "the end is seen too early, or not at all");
}

/* What is asked for is answered by an offer with just the missing chunks of the window. */
static void check_question(const struct fedmote_receiver *from) {
    struct fedmote_receiver receiver = *from;
    struct fedmote_message get;
    fedmote_receiver_ask(&receiver, &get, 0);
    must(is_same(&receiver, from), "asking changes the receiver");
    must(get.number[FEDMOTE_FIELD_MASK] == from->missing, "the question is not what is missing");
    struct fedmote_offer offer;
    fedmote_offer_open(&offer, from->size, HANDLE, 0);
    must(fedmote_offer_ask(&offer, &get) == FEDMOTE_OK, "the question is refused");
    uint32_t offset = 0;
    uint32_t size = 0;
    uint32_t answered = 0;
    while (fedmote_offer_next(&offer, &offset, &size)) {
        must(offset >= from->offset && size == length_of(from, offset / CHUNK), "an answer of another length");
        answered |= 1U << (offset - from->offset) / CHUNK;
    }
    must(answered == from->missing, "the answers are not what was asked for");
}

/* All chunks that anybody could send in a state. */
static void send_all(uint32_t come, uint32_t chunks, uint32_t *end) {
    const struct fedmote_receiver from = reached[come];
    for (uint32_t chunk = 0; chunk < chunks + 2; chunk++) {
        const uint32_t right = chunk < chunks ? length_of(&from, chunk) : CHUNK;
        const uint32_t offsets[] = {chunk * CHUNK, chunk * CHUNK + 1, chunk * CHUNK + CHUNK - 8, UINT32_MAX - chunk};
        const uint32_t sizes[] = {right, right - 1, right + 1, 0, 2 * CHUNK};
        for (uint32_t k = 0; k < 20; k++) {
            struct fedmote_receiver receiver = from;
            bool is_right = k == 0 && chunk < chunks && (come >> chunk & 1) == 0 && chunk * CHUNK >= from.offset &&
                            chunk * CHUNK < from.offset + from.window * CHUNK;
            bool is_taken = send(&receiver, HANDLE, offsets[k / 5], sizes[k % 5]);
            must(is_taken == is_right,
                 is_taken ? "a chunk is taken that must not be" : "a chunk of the window is refused");
            if (!is_taken) {
                must(is_same(&receiver, &from), "a refused chunk changes the receiver");
                continue;
            }
            uint32_t next = come | 1U << chunk;
            must(!is_reached[next] || is_same(&reached[next], &receiver), "the order of chunks matters");
            if (!is_reached[next]) {
                is_reached[next] = 1;
                reached[next] = receiver;
                waiting[(*end)++] = next;
            }
        }
        struct fedmote_receiver receiver = from;
        must(!send(&receiver, HANDLE + 1, chunk * CHUNK, right), "a chunk of another blob is taken");
    }
}

static void explore(uint32_t size, uint32_t window) {
    const uint32_t chunks = (size + CHUNK - 1) / CHUNK;
    memset(is_reached, 0, sizeof is_reached);
    fedmote_receiver_begin(&reached[0], HANDLE, size, window, 0);
    is_reached[0] = 1;
    waiting[0] = 0;
    uint32_t end = 1;
    for (uint32_t at = 0; at < end; at++) {
        check_state(&reached[waiting[at]], waiting[at], chunks);
        check_question(&reached[waiting[at]]);
        send_all(waiting[at], chunks, &end);
    }
    must(is_reached[(1U << chunks) - 1] != 0, "the transfer never ends");
    states += end;
}

int main(int argc, char **argv) {
    const uint32_t chunks_max = argc == 3 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    const uint32_t window = argc == 3 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    if (chunks_max == 0 || chunks_max >= CHUNKS_MAX || window == 0 || window > FEDMOTE_LIMIT_WINDOW) {
        fprintf(stderr, "usage: chunks CHUNKS WINDOW\n");
        return 2;
    }
    for (uint32_t chunks = 1; chunks <= chunks_max; chunks++) {
        explore((chunks - 1) * CHUNK + 1, window);
        explore(chunks * CHUNK - 1, window);
        explore(chunks * CHUNK, window);
    }
    printf("%lu states, %lu chunks\n", states, transitions);
    return 0;
}
