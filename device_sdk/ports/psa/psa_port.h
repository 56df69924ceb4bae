/* SPDX-License-Identifier: Apache-2.0
 *
 * Sealing of messages by the PSA Crypto API (PSA_ALG_CHACHA20_POLY1305), for products whose library, or whose secure
 * side, is reached by it. The subkey of XChaCha20 has no function there: xchacha20.c of ports/mbedtls makes it with
 * mbedtls_chacha20_crypt(), which libraries with this API have beside it. No hash and no verify, see ports/README.md.
 */
#ifndef FEDMOTE_PSA_PORT_H
#define FEDMOTE_PSA_PORT_H

#include "fedmote/fedmote_port.h"

/* XChaCha20-Poly1305, as port->crypto, after psa_crypto_init(). Takes a body and its tag on the stack, FEDMOTE_BODY_MAX
 * bytes and 16, twice while it opens: this API wants them in one piece. */
extern const struct fedmote_crypto psa_crypto;

#endif
