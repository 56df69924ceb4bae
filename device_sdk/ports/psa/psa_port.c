/* SPDX-License-Identifier: Apache-2.0
 *
 * The one-shot functions want the text and the tag behind it in one buffer, and may spoil their output where the tag
 * does not fit; the port has them apart and promises that nothing changes. So both are copied to the stack, worked on
 * there, and copied back.
 */
#include "psa_port.h"

#include <mbedtls/platform_util.h>
#include <psa/crypto.h>
#include <string.h>

#include "fedmote/fedmote_config.h"
#include "xchacha20.h"

enum { TAG = 16, MOST = FEDMOTE_BODY_MAX + TAG };

/* A subkey for one message of `size` bytes, as the library's volatile key. */
static psa_status_t import(psa_key_id_t *id, struct xchacha20 *x, const uint8_t key[32], const uint8_t nonce[24],
                           psa_key_usage_t usage, uint32_t size) {
    psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
    *id = PSA_KEY_ID_NULL;
    if (xchacha20_begin(x, key, nonce) != 0 || size > FEDMOTE_BODY_MAX) {
        return PSA_ERROR_GENERIC_ERROR;
    }
    psa_set_key_usage_flags(&attributes, usage);
    psa_set_key_algorithm(&attributes, PSA_ALG_CHACHA20_POLY1305);
    psa_set_key_type(&attributes, PSA_KEY_TYPE_CHACHA20);
    return psa_import_key(&attributes, x->key, sizeof x->key, id);
}

static void lock(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size) {
    uint8_t buffer[MOST];
    size_t length = 0;
    struct xchacha20 x;
    psa_key_id_t id;
    psa_status_t status = import(&id, &x, key, nonce, PSA_KEY_USAGE_ENCRYPT, size);
    if (status == PSA_SUCCESS) {
        status = psa_aead_encrypt(id, PSA_ALG_CHACHA20_POLY1305, x.nonce, sizeof x.nonce, associated, associated_size,
                                  bytes, size, buffer, sizeof buffer, &length);
    }
    if (status == PSA_SUCCESS && length == (size_t)size + TAG) {
        memcpy(bytes, buffer, size);
        memcpy(tag, buffer + size, TAG);
    } else { /* nothing readable may leave */
        memset(bytes, 0, size);
        memset(tag, 0, TAG);
    }
    (void)psa_destroy_key(id);
    mbedtls_platform_zeroize(&x, sizeof x);
}

static int32_t unlock(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size) {
    uint8_t buffer[MOST];
    uint8_t text[MOST];
    size_t length = 0;
    struct xchacha20 x;
    psa_key_id_t id;
    psa_status_t status = import(&id, &x, key, nonce, PSA_KEY_USAGE_DECRYPT, size);
    if (status == PSA_SUCCESS) {
        memcpy(buffer, bytes, size);
        memcpy(buffer + size, tag, TAG);
        status = psa_aead_decrypt(id, PSA_ALG_CHACHA20_POLY1305, x.nonce, sizeof x.nonce, associated, associated_size,
                                  buffer, (size_t)size + TAG, text, sizeof text, &length);
    }
    if (status == PSA_SUCCESS) {
        memcpy(bytes, text, length);
    }
    (void)psa_destroy_key(id);
    mbedtls_platform_zeroize(&x, sizeof x);
    mbedtls_platform_zeroize(text, sizeof text);
    return status == PSA_SUCCESS && length == size ? 0 : -1;
}

const struct fedmote_crypto psa_crypto = {lock, unlock};
