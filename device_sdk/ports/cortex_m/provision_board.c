/* SPDX-License-Identifier: Apache-2.0 */
#include "provision_board.h"

#include "chip.h"
#include "fedmote/fedmote_provision.h"
#include "fedmote_board.h"
#include "slots.h"

#define SAY_AGAIN_MS 1000U

/* Where the flash controller does not answer, an identity can only be flashed. */
static int32_t write_identity(void *context, uint32_t offset, const uint8_t *bytes, uint32_t size) {
    (void)context;
    return slots_are_in_ram() ? CHIP_ERROR_FLASH_REFUSED
                              : area_write(FEDMOTE_BOARD_REGIONS_IDENTITY_ADDRESS, FEDMOTE_BOARD_REGIONS_IDENTITY_BYTES,
                                           offset, bytes, size);
}

int32_t provision_board(const struct fedmote_port *port, uint8_t *arena, uint32_t arena_bytes,
                        void (*say)(int32_t status), int32_t status) {
    const struct fedmote_provisioning provisioning = {
        .port = port,
        .board = FEDMOTE_BOARD_NAME,
        .region = (const uint8_t *)FEDMOTE_BOARD_REGIONS_IDENTITY_ADDRESS,
        .region_bytes = FEDMOTE_BOARD_REGIONS_IDENTITY_BYTES,
        .write = write_identity,
    };
    int32_t step = fedmote_provision_begin(&provisioning, arena, arena_bytes);
    uint32_t said = chip_now_ms() - SAY_AGAIN_MS;
    if (step != FEDMOTE_OK) {
        return step;
    }
    while ((step = fedmote_provision_step(arena)) != FEDMOTE_OK) {
        if (step != FEDMOTE_IDLE) {
            continue;
        }
        if (chip_now_ms() - said >= SAY_AGAIN_MS) {
            said = chip_now_ms();
            say(status);
        }
        chip_sleep(); /* the tick wakes it at the latest */
    }
    return FEDMOTE_OK;
}
