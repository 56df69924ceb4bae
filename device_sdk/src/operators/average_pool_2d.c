/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

const struct fedmote_operator fedmote_operator_average_pool_2d = {
    FEDMOTE_OPCODE_AVERAGE_POOL_2D, sizeof(struct fedmote_pool) / 4U, fedmote_is_pool, fedmote_average_pool_2d};
