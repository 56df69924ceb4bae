/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    return fedmote_is_dense(&record->dense, bounds, 4U);
}

const struct fedmote_operator fedmote_operator_fully_connected_int4 = {
    FEDMOTE_OPCODE_FULLY_CONNECTED_INT4, sizeof(struct fedmote_dense) / 4U, is_valid, fedmote_fully_connected_int4};
