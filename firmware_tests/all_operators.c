/* SPDX-License-Identifier: Apache-2.0
 * The table of all operators, for the shared libraries and programs of the tests. */
#include "all_operators.h"

#include <stddef.h>

const struct fedmote_operator *const all_operators[] = {FEDMOTE_ALL_OPERATORS, NULL};
