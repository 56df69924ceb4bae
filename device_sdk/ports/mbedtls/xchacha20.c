/* SPDX-License-Identifier: Apache-2.0
 *
 * HChaCha20 is the ChaCha20 block without its last addition: words 0 to 3 and 12 to 15 of what the rounds leave. A
 * block of the library has the state added to that, and all of these eight words of the state are public (four
 * constants and the nonce), so they are taken off again.
 */
#include "xchacha20.h"

#include <mbedtls/chacha20.h>
#include <mbedtls/platform_util.h>
#include <string.h>

enum { BLOCK = 64, HALF = 16, LAST_ROW = 48, ZEROS = 4 };

static uint32_t load(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* `from` less `state`, word by word modulo 2^32. */
static void take_off(uint8_t *to, const uint8_t *from, const uint8_t *state) {
    for (uint32_t at = 0; at < HALF; at += 4) {
        const uint32_t word = load(from + at) - load(state + at);
        for (uint32_t i = 0; i < 4; i++) {
            to[at + i] = (uint8_t)(word >> 8 * i);
        }
    }
}

int xchacha20_begin(struct xchacha20 *x, const uint8_t key[32], const uint8_t nonce[24]) {
    static const uint8_t constants[HALF + 1] = "expand 32-byte k";
    uint8_t block[BLOCK] = {0};
    const int status = mbedtls_chacha20_crypt(key, nonce + 4, load(nonce), sizeof block, block, block);
    take_off(x->key, block, constants);
    take_off(x->key + HALF, block + LAST_ROW, nonce);
    mbedtls_platform_zeroize(block, sizeof block);
    memset(x->nonce, 0, ZEROS);
    memcpy(x->nonce + ZEROS, nonce + HALF, sizeof x->nonce - ZEROS);
    return status;
}
