/* SPDX-License-Identifier: Apache-2.0
 *
 * Sealing of messages by Mbed TLS 2.28 or 3 (MBEDTLS_CHACHA20_C, MBEDTLS_POLY1305_C, MBEDTLS_CHACHAPOLY_C), for
 * products that have it already. It has neither BLAKE2b nor EdDSA: hash and verify of a port are not here, see
 * ports/README.md.
 */
#ifndef FEDMOTE_MBEDTLS_PORT_H
#define FEDMOTE_MBEDTLS_PORT_H

#include "fedmote/fedmote_port.h"

/* XChaCha20-Poly1305, as port->crypto. Some 700 bytes of stack, wiped of keys before they are left. */
extern const struct fedmote_crypto mbedtls_crypto;

#endif
