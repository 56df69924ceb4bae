/* SPDX-License-Identifier: Apache-2.0
 *
 * The portable kernels take weights in the order of TensorFlow Lite's tensors.
 */
#include "fedmote/fedmote_schema.h"
#include "kernels.h"

const uint32_t fedmote_kernel_arrangement = FEDMOTE_ARRANGEMENT_PLAIN;
