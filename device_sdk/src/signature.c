/* SPDX-License-Identifier: Apache-2.0
 *
 * The plan carries a statement about its package (hash, size, serial number, operators) and the operator's signature
 * under it. So everything is decided before the first byte is fetched: a device that is told to flash what its owner
 * did not sign, what needs operators that it does not have, or what is older than what it has, says no and erases
 * nothing.
 */
#include "signature.h"

#include <string.h>

#include "client.h"
#include "little_endian.h"
#include "operators/operator.h"

enum { DOMAIN = 16, HASH = 32, STATEMENT = DOMAIN + HASH + 12, MASK_BITS = 32 };

/* So that a signature under anything else is worth nothing here. */
static const uint8_t domain[DOMAIN] = {'f', 'e', 'd', 'm', 'o', 't', 'e', ' ', 'p', 'a', 'c', 'k', 'a', 'g', 'e', 1};

/* The operators that this program has, bit k for opcode k. */
static uint32_t own_operators(const struct fedmote_operator *const *operators) {
    uint32_t mask = 0;
    for (; *operators; operators++) {
        mask |= (*operators)->opcode < MASK_BITS ? 1U << (*operators)->opcode : 0;
    }
    return mask;
}

static int32_t check(const struct fedmote_client *client, const struct fedmote_message *plan) {
    if (!client->identity.verify_key) {
        return FEDMOTE_OK;
    }
    if (!fedmote_message_has(plan, FEDMOTE_FIELD_SIGNATURE) || !fedmote_message_has(plan, FEDMOTE_FIELD_SERIAL) ||
        !fedmote_message_has(plan, FEDMOTE_FIELD_OPERATORS)) {
        return FEDMOTE_ERR_PACKAGE_SIGNATURE;
    }
    const uint8_t *hash = plan->bytes[FEDMOTE_FIELD_MODEL_HASH];
    const uint32_t serial = plan->number[FEDMOTE_FIELD_SERIAL];
    const uint32_t operators = plan->number[FEDMOTE_FIELD_OPERATORS];
    uint8_t statement[STATEMENT];
    memcpy(statement, domain, DOMAIN);
    memcpy(statement + DOMAIN, hash, HASH);
    fedmote_put_u32(statement + DOMAIN + HASH, plan->number[FEDMOTE_FIELD_MODEL_SIZE]);
    fedmote_put_u32(statement + DOMAIN + HASH + 4, serial);
    fedmote_put_u32(statement + DOMAIN + HASH + 8, operators);
    if (client->port->verify(plan->bytes[FEDMOTE_FIELD_SIGNATURE], client->identity.verify_key, statement, STATEMENT) !=
        0) {
        return FEDMOTE_ERR_PACKAGE_SIGNATURE;
    }
    if ((operators & ~own_operators(client->port->operators)) != 0) {
        return FEDMOTE_ERR_PACKAGE_OPERATOR;
    }
    const uint8_t *installed = fedmote_store_hash(&client->store);
    const bool is_there = (installed && memcmp(installed, hash, HASH) == 0) ||
                          fedmote_store_is_newest(&client->store, hash); /* it may be on trial, and wait for another */
    return !is_there && serial < client->store.generation ? FEDMOTE_ERR_PACKAGE_OLD : FEDMOTE_OK;
}

const struct fedmote_signing fedmote_package_signing = {check};
