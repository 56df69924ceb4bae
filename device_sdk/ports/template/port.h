/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BOARD_PORT_H
#define BOARD_PORT_H

#include "fedmote/fedmote.h"

extern const struct fedmote_port board_port;

#endif
