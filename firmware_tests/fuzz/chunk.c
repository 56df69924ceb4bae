/* SPDX-License-Identifier: Apache-2.0
 *
 * Both ends of a transfer. The input is the blob's size (u32) and window (u8), then what comes, each with an opcode:
 *
 *     0, offset u32, size u16     a chunk, whatever it claims to be
 *     1, number u16               the chunk of that number, as the sender would send it
 *     2                           the receiver asks, and an offer of the same blob answers what it is asked for
 *     3, chunk u16, offset u32, mask u32     somebody else asks the offer
 *
 * A chunk is taken once, lies inside the blob and has the length that its place wants; the window moves on only where
 * all of it has come, and in the end every byte has come once.
 */
#include "fuzz.h"
#include "transfer.h"

enum { BLOB_MAX = 1 << 20, CHUNK = FEDMOTE_CHUNK_MAX };

struct blob {
    uint8_t *has_come; /* a byte for each chunk */
    uint32_t size, chunks, taken;
};

static void offer_chunk(struct fedmote_receiver *receiver, struct blob *blob, uint32_t offset, uint32_t size) {
    struct fedmote_message data;
    fedmote_message_begin(&data, FEDMOTE_KIND_DATA);
    fedmote_message_number(&data, FEDMOTE_FIELD_HANDLE, receiver->handle);
    fedmote_message_number(&data, FEDMOTE_FIELD_OFFSET, offset);
    fedmote_message_string(&data, FEDMOTE_FIELD_DATA, NULL, size);
    int32_t bit = fedmote_receiver_accept(receiver, &data);
    if (bit < 0) {
        return;
    }
    must(offset % CHUNK == 0 && offset < blob->size, "a chunk at no place of the blob");
    must(size == (blob->size - offset < CHUNK ? blob->size - offset : CHUNK), "a chunk of another length");
    must(blob->has_come[offset / CHUNK] == 0, "a chunk is taken twice");
    must(bit < (int32_t)FEDMOTE_LIMIT_WINDOW, "a bit outside the mask");
    blob->has_come[offset / CHUNK] = 1;
    blob->taken++;
    fedmote_receiver_done(receiver, bit, 0);
    fedmote_receiver_go_on(receiver, 0);
    must(receiver->missing != 0 || blob->taken == blob->chunks, "nothing is missing, but chunks have not come");
}

/* What an offer answers is inside its blob, on the grid of the question, and ends. */
static void drain(struct fedmote_offer *offer, uint32_t chunk, uint32_t first) {
    uint32_t offset = 0;
    uint32_t size = 0;
    uint32_t answers = 0;
    while (fedmote_offer_next(offer, &offset, &size)) {
        must(size > 0 && size <= chunk && offset < offer->size && size <= offer->size - offset,
             "an answer outside the blob");
        must((offset - first) % chunk == 0, "an answer between the chunks");
        must(++answers <= FEDMOTE_LIMIT_WINDOW, "more answers than bits");
    }
}

static void ask(struct fedmote_receiver *receiver, struct blob *blob) {
    struct fedmote_message get;
    fedmote_receiver_ask(receiver, &get, 0);
    if (get.number[FEDMOTE_FIELD_MASK] == 0) {
        return;
    }
    struct fedmote_offer offer;
    fedmote_offer_open(&offer, receiver->size, receiver->handle, 0);
    must(fedmote_offer_ask(&offer, &get) == FEDMOTE_OK, "our own question is refused");
    uint32_t offset = 0;
    uint32_t size = 0;
    while (fedmote_offer_next(&offer, &offset, &size)) {
        uint32_t taken = blob->taken;
        offer_chunk(receiver, blob, offset, size);
        must(blob->taken == taken + 1, "what was asked for is not taken");
    }
}

static void ask_as_stranger(struct input *input, uint32_t blob_size) {
    struct fedmote_offer offer;
    fedmote_offer_open(&offer, blob_size, 1, 0);
    struct fedmote_message get;
    fedmote_message_begin(&get, FEDMOTE_KIND_GET);
    uint32_t chunk = take(input, 2);
    uint32_t offset = take(input, 4);
    fedmote_message_number(&get, FEDMOTE_FIELD_CHUNK, chunk < 8 ? 8 : chunk); /* the decoder refuses less */
    fedmote_message_number(&get, FEDMOTE_FIELD_OFFSET, offset);
    fedmote_message_number(&get, FEDMOTE_FIELD_MASK, take(input, 4));
    if (fedmote_offer_ask(&offer, &get) == FEDMOTE_OK) {
        drain(&offer, get.number[FEDMOTE_FIELD_CHUNK], offset);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint32_t blob_size = take(&input, 4) % BLOB_MAX + 1;
    uint32_t window = take(&input, 1) % FEDMOTE_LIMIT_WINDOW + 1;
    struct blob blob = {.size = blob_size, .chunks = (blob_size + CHUNK - 1) / CHUNK};
    blob.has_come = block_of(NULL, blob.chunks);
    memset(blob.has_come, 0, blob.chunks);
    struct fedmote_receiver receiver;
    fedmote_receiver_begin(&receiver, 1, blob_size, window, 0);
    while (input.left > 0) {
        uint32_t what = take(&input, 1) % 4;
        if (what == 0) {
            uint32_t offset = take(&input, 4);
            offer_chunk(&receiver, &blob, offset, take(&input, 2));
        } else if (what == 1) {
            uint32_t offset = take(&input, 2) % blob.chunks * CHUNK;
            uint32_t left = blob_size - offset;
            offer_chunk(&receiver, &blob, offset, left < CHUNK ? left : CHUNK);
        } else if (what == 2) {
            ask(&receiver, &blob);
        } else {
            ask_as_stranger(&input, blob_size);
        }
    }
    for (uint32_t i = 0; i < blob.chunks && receiver.missing != 0; i++) { /* it can always be ended */
        ask(&receiver, &blob);
    }
    must(receiver.missing == 0 && blob.taken == blob.chunks, "the transfer does not end");
    free(blob.has_come);
    return 0;
}
