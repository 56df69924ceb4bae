/* SPDX-License-Identifier: Apache-2.0
 *
 * The device without keys: scripts of device.h.
 */
#include "device.h"

static void act(struct board *board, uint32_t what, struct input *input) {
    (void)board;
    (void)what;
    (void)input;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct fedmote_identity identity = {
        .id = "b-1", .site = "lab", .board = "posix", .link = &fedmote_serial_link, .is_sending_samples = 1};
    struct board board;
    board_open(&board);
    const struct fedmote_port port = port_of(&board);
    play(&board, &port, &identity, data, size);
    board_close(&board);
    return 0;
}
