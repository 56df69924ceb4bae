/* SPDX-License-Identifier: Apache-2.0 */
#include "operator.h"

static bool is_valid(const union fedmote_record *record, const struct fedmote_bounds *bounds) {
    return fedmote_is_conv(&record->conv, bounds, 4U);
}

const struct fedmote_operator fedmote_operator_conv_2d_int4 = {
    FEDMOTE_OPCODE_CONV_2D_INT4, sizeof(struct fedmote_conv) / 4U, is_valid, fedmote_conv_2d_int4};
