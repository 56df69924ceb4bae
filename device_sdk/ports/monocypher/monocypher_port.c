/* SPDX-License-Identifier: Apache-2.0 */
#include "monocypher_port.h"

#include "monocypher.h"

#define DIGEST_BYTES 32U

void monocypher_hash(void *context, const uint8_t *first, uint32_t first_size, const uint8_t *second,
                     uint32_t second_size, uint8_t digest[32]) {
    (void)context;
    crypto_blake2b_ctx state;
    crypto_blake2b_init(&state, DIGEST_BYTES);
    crypto_blake2b_update(&state, first, first_size);
    crypto_blake2b_update(&state, second, second_size);
    crypto_blake2b_final(&state, digest);
}

static void lock(uint8_t *bytes, uint32_t size, uint8_t tag[16], const uint8_t key[32], const uint8_t nonce[24],
                 const uint8_t *associated, uint32_t associated_size) {
    crypto_aead_lock(bytes, tag, key, nonce, associated, associated_size, bytes, size);
}

static int32_t unlock(uint8_t *bytes, uint32_t size, const uint8_t tag[16], const uint8_t key[32],
                      const uint8_t nonce[24], const uint8_t *associated, uint32_t associated_size) {
    return crypto_aead_unlock(bytes, tag, key, nonce, associated, associated_size, bytes, size);
}

int32_t monocypher_verify(const uint8_t signature[64], const uint8_t verify_key[32], const uint8_t *message,
                          uint32_t size) {
    return crypto_eddsa_check(signature, verify_key, message, size);
}

/* With a public key that is none Monocypher's result is all zeros, whatever the secret. */
int32_t monocypher_agree(uint8_t shared[32], const uint8_t secret[32], const uint8_t public_key[32]) {
    static const uint8_t zeros[32];
    crypto_x25519(shared, secret, public_key);
    return crypto_verify32(shared, zeros) == 0 ? -1 : 0;
}

const struct fedmote_crypto monocypher_crypto = {lock, unlock};
