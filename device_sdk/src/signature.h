/* SPDX-License-Identifier: Apache-2.0
 *
 * Signed packages (protocol/SPEC.md, section 12): who may put a package into the flash, and that none is put there
 * which is older than the one that is there. Linked where a port names `fedmote_package_signing`.
 */
#ifndef FEDMOTE_SIGNATURE_H
#define FEDMOTE_SIGNATURE_H

#include "wire.h"

struct fedmote_client;

struct fedmote_signing {
    /* Whether the package of a plan may be fetched; asked before anything is erased. Errors:
     * FEDMOTE_ERR_PACKAGE_SIGNATURE, FEDMOTE_ERR_PACKAGE_OPERATOR, FEDMOTE_ERR_PACKAGE_OLD. */
    int32_t (*check)(const struct fedmote_client *client, const struct fedmote_message *plan);
};

#endif
