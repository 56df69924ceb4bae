/* SPDX-License-Identifier: Apache-2.0
 *
 * Cryptography of a port by Monocypher (https://monocypher.org, BSD-2-Clause or CC0). Its two files are not part of
 * this SDK: give their folder to the build as FEDMOTE_MONOCYPHER. */
#ifndef FEDMOTE_MONOCYPHER_PORT_H
#define FEDMOTE_MONOCYPHER_PORT_H

#include "fedmote/fedmote_port.h"

/* BLAKE2b-256 of two spans after each other, as port->hash. Some 400 bytes of stack. */
void monocypher_hash(void *context, const uint8_t *first, uint32_t first_size, const uint8_t *second,
                     uint32_t second_size, uint8_t digest[32]);

/* XChaCha20-Poly1305, as port->crypto. Some 600 bytes of stack, wiped of keys before they are left. */
extern const struct fedmote_crypto monocypher_crypto;

/* EdDSA with BLAKE2b, as port->verify. Some 2,000 bytes of stack. */
int32_t monocypher_verify(const uint8_t signature[64], const uint8_t verify_key[32], const uint8_t *message,
                          uint32_t size);

/* X25519, as port->agree. Some 900 bytes of stack, wiped before they are left. */
int32_t monocypher_agree(uint8_t shared[32], const uint8_t secret[32], const uint8_t public_key[32]);

#endif
