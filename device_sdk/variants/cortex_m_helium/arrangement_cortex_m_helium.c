/* SPDX-License-Identifier: Apache-2.0
 *
 * The order of weights that these kernels want (helium.h) adds nothing to them, and their scaling is the plain one.
 */
#include "fedmote/fedmote_schema.h"
#include "operators/operator.h"

const uint32_t fedmote_kernel_arrangement = FEDMOTE_ARRANGEMENT_CORTEX_M_HELIUM;

uint64_t fedmote_conv_weight_bytes(const struct fedmote_conv *op) {
    return (uint64_t)op->kernel_h * op->kernel_w * op->group_in_c * op->out_c;
}

uint64_t fedmote_depthwise_weight_bytes(const struct fedmote_conv *op) { return fedmote_conv_weight_bytes(op); }

uint64_t fedmote_dense_weight_bytes(const struct fedmote_dense *op) { return (uint64_t)op->in_n * op->out_n; }

bool fedmote_is_kernel_scaling(const uint8_t *scaling, uint32_t count) { return fedmote_are_scalings(scaling, count); }
