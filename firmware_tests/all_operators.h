/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ALL_OPERATORS_H
#define ALL_OPERATORS_H

#include "fedmote/fedmote_operators.h"

extern const struct fedmote_operator *const all_operators[];

#endif
