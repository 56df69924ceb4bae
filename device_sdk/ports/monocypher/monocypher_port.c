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
