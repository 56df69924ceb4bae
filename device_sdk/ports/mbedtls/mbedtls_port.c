/* SPDX-License-Identifier: Apache-2.0
 *
 * mbedtls_chachapoly_auth_decrypt() would decrypt first and wipe its output where the tag does not fit. The port
 * promises that nothing changes then, so the tag is made and compared first, by Poly1305 over what RFC 8439 says.
 */
#include "mbedtls_port.h"

#include <mbedtls/chacha20.h>
#include <mbedtls/chachapoly.h>
#include <mbedtls/constant_time.h>
#include <mbedtls/platform_util.h>
#include <mbedtls/poly1305.h>
#include <string.h>

#include "xchacha20.h"

enum { TAG = 16, BLOCK = 64, FIRST_TEXT_BLOCK = 1 };

/* Nothing readable may leave where the library fails, which a driver of a part might. */
static void spoil(uint8_t *bytes, uint32_t size, uint8_t tag[TAG]) {
    memset(bytes, 0, size);
    memset(tag, 0, TAG);
}

static void lock(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size) {
    struct xchacha20 x;
    mbedtls_chachapoly_context context;
    mbedtls_chachapoly_init(&context);
    int status = xchacha20_begin(&x, key, nonce);
    if (status == 0) {
        status = mbedtls_chachapoly_setkey(&context, x.key);
    }
    if (status == 0) {
        status =
            mbedtls_chachapoly_encrypt_and_tag(&context, size, x.nonce, associated, associated_size, bytes, bytes, tag);
    }
    if (status != 0) {
        spoil(bytes, size, tag);
    }
    mbedtls_chachapoly_free(&context);
    mbedtls_platform_zeroize(&x, sizeof x);
}

static void store64(uint8_t *bytes, uint64_t value) {
    for (uint32_t i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* Some bytes, and zeros up to a multiple of 16. */
static int add_padded(mbedtls_poly1305_context *context, const uint8_t *bytes, uint32_t size) {
    static const uint8_t zeros[TAG] = {0};
    const int status = mbedtls_poly1305_update(context, bytes, size);
    return status != 0 ? status : mbedtls_poly1305_update(context, zeros, (TAG - size % TAG) % TAG);
}

static int make_tag(uint8_t tag[TAG], const struct xchacha20 *x, const uint8_t *bytes, uint32_t size,
                    const uint8_t *associated, uint32_t associated_size) {
    uint8_t block[BLOCK] = {0}; /* its first half is the key of Poly1305 */
    uint8_t lengths[TAG];
    store64(lengths, associated_size);
    store64(lengths + 8, size);
    mbedtls_poly1305_context context;
    mbedtls_poly1305_init(&context);
    int status = mbedtls_chacha20_crypt(x->key, x->nonce, 0, sizeof block, block, block);
    if (status == 0) {
        status = mbedtls_poly1305_starts(&context, block);
    }
    if (status == 0) {
        status = add_padded(&context, associated, associated_size);
    }
    if (status == 0) {
        status = add_padded(&context, bytes, size);
    }
    if (status == 0) {
        status = mbedtls_poly1305_update(&context, lengths, sizeof lengths);
    }
    if (status == 0) {
        status = mbedtls_poly1305_finish(&context, tag);
    }
    mbedtls_poly1305_free(&context);
    mbedtls_platform_zeroize(block, sizeof block);
    return status;
}

static int32_t unlock(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size) {
    struct xchacha20 x;
    uint8_t expected[TAG] = {0};
    int status = xchacha20_begin(&x, key, nonce);
    if (status == 0) {
        status = make_tag(expected, &x, bytes, size, associated, associated_size);
    }
    if (status == 0) {
        status = mbedtls_ct_memcmp(tag, expected, TAG);
    }
    if (status == 0) {
        status = mbedtls_chacha20_crypt(x.key, x.nonce, FIRST_TEXT_BLOCK, size, bytes, bytes);
    }
    mbedtls_platform_zeroize(&x, sizeof x);
    mbedtls_platform_zeroize(expected, sizeof expected);
    return status;
}

const struct fedmote_crypto mbedtls_crypto = {lock, unlock};
