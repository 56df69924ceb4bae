/* SPDX-License-Identifier: Apache-2.0
 *
 * Decoder of differences (protocol/SPEC.md, section 9): makes a package out of another one and a stream of bytes. It
 * takes the stream in pieces, of any size behind the header, reads the base in place, hands the target out in pages, in
 * order, and knows nothing of slots and messages. Whatever the stream holds, every byte that it asks for is one of the
 * base, and it makes no more bytes than the target has.
 *
 * The code is a binary range coder with adaptive probabilities (G. N. N. Martin, Range encoding, 1979; the form with
 * one comparison and a shift per decision is that of LZMA). Each byte is coded as the change against its base: how many
 * bits its magnitude has, one decision per bit, in a context of how large the changes in its lane were of late; then
 * sign and lower bits as they are.
 */
#ifndef FEDMOTE_DIFFERENCE_H
#define FEDMOTE_DIFFERENCE_H

#include "fedmote/fedmote.h"

enum {
    FEDMOTE_DIFFERENCE_FORMAT = 1,
    FEDMOTE_DIFFERENCE_FIRST = 92,  /* bytes that the first piece of a stream has at least, unless it is all of it */
    FEDMOTE_DIFFERENCE_PAGE = 64,   /* bytes of the target that are handed out at once */
    FEDMOTE_DIFFERENCE_CLASSES = 3, /* of the size of changes */
    FEDMOTE_DIFFERENCE_LENGTHS = 8, /* decisions about the bits of a magnitude */
    FEDMOTE_DIFFERENCE_LANES = 12   /* bytes whose changes resemble each other are so far apart: three words */
};

struct fedmote_difference {
    const uint8_t *base; /* the installed package; borrowed, and so is target_hash[32] */
    const uint8_t *target_hash;
    uint32_t size, target_size; /* of the stream, of what it makes */
    uint32_t taken, made;       /* of both, so far */
    uint32_t range, code;       /* of the range coder */
    uint32_t left, from;        /* of the segment: bytes to come, and where in the base the next one has its base */
    uint64_t bits;              /* the last bits that were read as they are */
    uint8_t bit_count, length, lane, filled;
    bool is_measured;                       /* length is final */
    uint8_t mean[FEDMOTE_DIFFERENCE_LANES]; /* of the bits of late changes, in sixteenths */
    uint16_t probability[FEDMOTE_DIFFERENCE_CLASSES][FEDMOTE_DIFFERENCE_LENGTHS];
    uint8_t page[FEDMOTE_DIFFERENCE_PAGE]; /* [filled): the target's bytes up to `made` */
};

/* Begins with a stream of `size` bytes that shall make the package `target_hash` of `target_size` bytes out of the
 * package at `base`. */
void fedmote_difference_begin(struct fedmote_difference *difference, const uint8_t *base, const uint8_t *target_hash,
                              uint32_t target_size, uint32_t size);

/* Goes on with the stream's next bytes, bytes[*at] to bytes[size - 1], and moves *at. Returns FEDMOTE_BUSY where a page
 * is to be written, at made - filled of the target: call again then; FEDMOTE_OK where the bytes are used up, and the
 * target is complete if that was the last one. Errors: FEDMOTE_ERR_DIFFERENCE_BASE for a stream that starts from
 * another package, FEDMOTE_ERR_DIFFERENCE for one that is none, or says that it makes another package than the wanted
 * one. Not every damage shows here: what was made is to be verified as any package is, which is why the stream's own
 * checksum is not looked at. Work: at most a page. */
FEDMOTE_MUST_CHECK int32_t fedmote_difference_decode(struct fedmote_difference *difference, const uint8_t *bytes,
                                                     uint32_t size, uint32_t *at);

#endif
