/* SPDX-License-Identifier: Apache-2.0
 *
 * What makes XChaCha20 out of the ChaCha20 of a library: a key and the first 16 bytes of a nonce give a subkey, the
 * last 8 the nonce that goes with it (draft-irtf-cfrg-xchacha-03, section 2).
 */
#ifndef FEDMOTE_MBEDTLS_XCHACHA20_H
#define FEDMOTE_MBEDTLS_XCHACHA20_H

#include <stdint.h>

/* Secret: to be wiped by mbedtls_platform_zeroize() after use. */
struct xchacha20 {
    uint8_t key[32];
    uint8_t nonce[12];
};

/* Returns 0, or the error of Mbed TLS. */
int xchacha20_begin(struct xchacha20 *x, const uint8_t key[32], const uint8_t nonce[24]);

#endif
