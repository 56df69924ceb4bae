/* SPDX-License-Identifier: Apache-2.0
 *
 * What a board gives to fedmote: one struct of callbacks. All are called from fedmote_step() and fedmote_init() only,
 * in the caller's context, and must return at once (an erase may take as long as the part's own erase time). A callback
 * that can fail returns a negative number below -127, so that it never collides with a status of the schema; the SDK
 * reports it as FEDMOTE_ERR_LINK, _SLOT_IO or _SAMPLE_IO.
 */
#ifndef FEDMOTE_PORT_H
#define FEDMOTE_PORT_H

#include <stdint.h>

#include "fedmote/fedmote_operators.h"

/* What the head is trained in. Name one of them in the port; the other one is not linked. */
struct fedmote_arithmetic;
extern const struct fedmote_arithmetic fedmote_float32; /* for a core with an FPU (src/head_float.c) */
extern const struct fedmote_arithmetic fedmote_int16;   /* integers alone (src/head_integer.c) */

/* What keeps embeddings in the cache region of a port; where none names it, it is not linked (src/cache.c). */
struct fedmote_cache;
extern const struct fedmote_cache fedmote_cache_region;

/* What makes new packages out of the installed one and a difference; where none names it, it is not linked and packages
 * come whole (src/patch.c). */
struct fedmote_patching;
extern const struct fedmote_patching fedmote_difference_patching;

/* What keeps a boot counter and finished updates over a reset; where none names it, it is not linked (src/journal.c).
 */
struct fedmote_journal;
extern const struct fedmote_journal fedmote_flash_journal;
/* What seals and opens messages; where none names it, it is not linked and messages prove nothing (src/seal.c). */
struct fedmote_sealing;
extern const struct fedmote_sealing fedmote_message_sealing;

/* What checks who signed a package before it is fetched; where none names it, it is not linked (src/signature.c). */
struct fedmote_signing;
extern const struct fedmote_signing fedmote_package_signing;

/* What hands in updates under masks that vanish in the sum of a group; where none names it, it is not linked
 * (src/masks.c). */
struct fedmote_masking;
extern const struct fedmote_masking fedmote_sum_masking;

/* Authenticated encryption of a crypto library: XChaCha20-Poly1305 with a nonce of 24 bytes, the tag apart. */
struct fedmote_crypto {
    /* Encrypts bytes[0, size) in place; `associated` is authenticated with it and lies elsewhere. */
    void (*lock)(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size);
    /* The way back. Returns 0; or anything else, with nothing changed, where the tag does not fit, which is compared in
     * a time that says nothing about it. */
    int32_t (*unlock)(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size);
};

struct fedmote_port {
    void *context; /* handed to every callback, never touched */

    /* Monotonic milliseconds; may wrap at 2^32 and need not start at zero. */
    uint32_t (*now_ms)(void *context);
    /* Entropy for the boot nonce and for jitter; not for keys. */
    uint32_t (*random)(void *context);

    /* The byte stream: UART, socket, modem. Both return the number of bytes moved, 0 where none could be moved now, or
     * an error, once for each loss, where the stream broke: the link then begins afresh with the next bytes that move.
     */
    int32_t (*stream_read)(void *context, uint8_t *bytes, uint32_t capacity);
    int32_t (*stream_write)(void *context, const uint8_t *bytes, uint32_t size);

    /* The local samples, in the encoder's input quantization, channels last. `label` is a class index. From the first
     * read of a round to its end an index means the same sample; samples that come meanwhile go behind the others.
     * Returns 0 or an error. */
    uint32_t (*sample_count)(void *context);
    int32_t (*sample_read)(void *context, uint32_t index, int8_t *x, uint32_t x_bytes, uint32_t *label);

    /* Two package slots (0 and 1) of slot_bytes each, readable in place at slot_base, at an address that is a
     * multiple of 16; no erasable sector belongs to both. Erased bytes read as 0xFF or 0x00. Writes start and end at
     * multiples of 8, or at the slot's end, and each byte is written at most once between erases. A write returns when
     * the bytes can be read back. Both return 0 or an error. */
    uint32_t slot_bytes;
    const uint8_t *(*slot_base)(void *context, uint32_t slot);
    int32_t (*slot_erase)(void *context, uint32_t slot);
    int32_t (*slot_write)(void *context, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size);

    /* BLAKE2b-256 of two spans after each other, from the port's crypto library. NULL: packages are checked by CRC-32
     * only and fedmote_status() says so (is_unsigned). */
    void (*hash)(void *context, const uint8_t *first, uint32_t first_size, const uint8_t *second, uint32_t second_size,
                 uint8_t digest[32]);

    /* Optional observer of what happens; NULL is fine. `event` is one of enum fedmote_event. */
    void (*event)(void *context, int32_t event, int32_t value);

    /* What encoders may consist of: a table that ends with NULL. Only what it names is linked. */
    const struct fedmote_operator *const *operators;

    const struct fedmote_arithmetic *arithmetic;

    /* Optional room for the embeddings that the arena does not hold: `cache` is &fedmote_cache_region and the others
     * are complete, or all are NULL and 0. cache_bytes of memory that can be read in place, no erasable sector shared
     * with a slot. Writes as of a slot: they start and end at multiples of 8, each byte at most once between erases. A
     * round erases the region at most once, and not at all where the arena holds everything; nothing in it outlives the
     * round. Both return 0 or an error, which costs no more than encoding again (FEDMOTE_EVENT_CACHE_LOST). */
    const struct fedmote_cache *cache;
    uint32_t cache_bytes;
    const int8_t *(*cache_base)(void *context);
    int32_t (*cache_erase)(void *context);
    int32_t (*cache_write)(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size);

    /* Optional: &fedmote_difference_patching, or NULL. */
    const struct fedmote_patching *patching;

    /* Optional memory that outlives a reset: `journal` is &fedmote_flash_journal and the others are complete, or all
     * are NULL and 0. Two regions (0 and 1) of journal_bytes each, a multiple of 8, readable in place at an address
     * that is a multiple of 8; journal_base returns NULL where there are none today. No erasable sector belongs to
     * both, nor to a slot. Erased bytes, writes and errors as of a slot: writes start and end at multiples of 8, each
     * byte at most once between erases, from RAM. fedmote_init() writes 16 bytes, and erases a region where the other
     * one is full; a round writes its update, and erases where it finds no room. Larger regions wear less. An update
     * takes up to 490 bytes of a region and 4 for each parameter of the head, room for boots included; one that does
     * not fit is skipped (FEDMOTE_EVENT_JOURNAL_LOST). */
    const struct fedmote_journal *journal;
    uint32_t journal_bytes;
    const uint8_t *(*journal_base)(void *context, uint32_t region);
    int32_t (*journal_erase)(void *context, uint32_t region);
    int32_t (*journal_write)(void *context, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size);

    /* Optional, for devices whose identity has keys: &fedmote_message_sealing with the functions for it, or NULL. Such
     * a device needs the journal as well: its boots are counted there, and no number may come twice under one key.
     * Whoever erases a journal gives the device new keys. */
    const struct fedmote_sealing *sealing;
    const struct fedmote_crypto *crypto;

    /* Optional, for devices whose identity has a verify key: &fedmote_package_signing and the function for it, or NULL.
     * verify() says whether a signature fits, 0 where it does: EdDSA over Curve25519 with BLAKE2b-512 for its hash. */
    const struct fedmote_signing *signing;
    int32_t (*verify)(const uint8_t signature[64], const uint8_t verify_key[32], const uint8_t *message, uint32_t size);

    /* Optional, for devices whose identity has a group: &fedmote_sum_masking and the function for it, or NULL. Such a
     * device needs hash, sealing and journal as well. agree() makes the X25519 secret of a secret and a public key.
     * Returns 0; or anything else where it is all zeros, because the public key is none. It takes a time that says
     * nothing about the secret, and leaves no copy of it. A participation in a masked round takes 25 of these at most,
     * each in a step of its own. */
    const struct fedmote_masking *masking;
    int32_t (*agree)(uint8_t shared[32], const uint8_t secret[32], const uint8_t public_key[32]);
};

#endif
