/* SPDX-License-Identifier: Apache-2.0
 *
 * The weights of all outputs of a group for 16 products, then those for the next 16: helium.h.
 */
#include "fedmote/fedmote_schema.h"
#include "kernels.h"

const uint32_t fedmote_kernel_arrangement = FEDMOTE_ARRANGEMENT_CORTEX_M_HELIUM;
