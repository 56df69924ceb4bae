/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes of the weights in the order that these kernels want; each kernel describes its own.
 */
#include "dsp.h"
#include "fedmote/fedmote_schema.h"
#include "operators/operator.h"

const uint32_t fedmote_kernel_arrangement = FEDMOTE_ARRANGEMENT_CORTEX_M_DSP;

uint64_t fedmote_conv_weight_bytes(const struct fedmote_conv *op) {
    const uint32_t pairs = op->groups * ((op->group_out_c + 1U) / 2U); /* no more than out_c */
    return (uint64_t)pairs * op->kernel_h * fedmote_dsp_runs(op) * fedmote_dsp_run_groups(op) * 8U;
}

uint64_t fedmote_depthwise_weight_bytes(const struct fedmote_conv *op) {
    return (uint64_t)op->out_c * op->kernel_h * op->kernel_w;
}

uint64_t fedmote_dense_weight_bytes(const struct fedmote_dense *op) {
    return (uint64_t)((op->in_n + 3U) / 4U) * ((op->out_n + 3U) / 4U) * 16U;
}

/* Either all third words are shifts, or none is. */
bool fedmote_is_kernel_scaling(const uint8_t *scaling, uint32_t count) {
    if (fedmote_dsp_is_plain(scaling)) {
        return fedmote_are_scalings(scaling, count);
    }
    for (const uint8_t *end = scaling + FEDMOTE_SCALING_BYTES * count; scaling != end;
         scaling += FEDMOTE_SCALING_BYTES) {
        if (fedmote_load_s32(scaling + 4) < 0 || fedmote_dsp_is_plain(scaling)) {
            return false;
        }
    }
    return true;
}
