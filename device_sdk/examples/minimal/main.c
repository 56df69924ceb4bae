/* SPDX-License-Identifier: Apache-2.0
 * The smallest firmware that takes part: fill ports/template/port.c for your board, and call one function for ever. */
#include "fedmote/fedmote.h"
#include "port.h"

static struct fedmote device;
static uint8_t arena[16384] __attribute__((aligned(16)));

int main(void) {
    const struct fedmote_identity identity = {.id = "board-1", .site = "lab", .link = &fedmote_serial_link};
    if (fedmote_init(&device, &board_port, &identity, arena, sizeof arena) != FEDMOTE_OK) {
        return 1;
    }
    for (;;) {
        if (fedmote_step(&device) == FEDMOTE_IDLE) {
            /* sleep until bytes arrive, at most fedmote_wake_ms(&device) */
        }
    }
}
