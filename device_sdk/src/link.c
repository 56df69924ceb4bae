/* SPDX-License-Identifier: Apache-2.0 */
#include "link.h"

bool fedmote_line_is_free(const struct fedmote_line *line) { return line->is_up && line->tx_begin == line->tx_end; }

int32_t fedmote_line_flush(struct fedmote_line *line) {
    if (line->tx_begin == line->tx_end) {
        return FEDMOTE_OK;
    }
    uint32_t left = line->tx_end - line->tx_begin;
    int32_t moved = line->port->stream_write(line->port->context, line->transmit + line->tx_begin, left);
    if (moved < 0 || (uint32_t)moved > left) {
        return FEDMOTE_ERR_LINK;
    }
    line->tx_begin += (uint32_t)moved;
    line->has_moved = line->has_moved || moved > 0;
    return FEDMOTE_OK;
}

int32_t fedmote_line_read(struct fedmote_line *line, uint8_t *bytes, uint32_t size) {
    int32_t moved = line->port->stream_read(line->port->context, bytes, size);
    if (moved < 0 || (uint32_t)moved > size) {
        return FEDMOTE_ERR_LINK;
    }
    line->has_moved = line->has_moved || moved > 0;
    return moved;
}

void fedmote_line_drop(struct fedmote_line *line, int32_t status) {
    line->frame_errors++;
    line->error = status;
}

void fedmote_line_lose(struct fedmote_line *line, int32_t status) {
    line->losses += line->is_up ? 1U : 0U;
    line->is_up = false;
    line->error = status;
    line->tx_begin = line->tx_end = 0;
}

uint32_t fedmote_until(uint32_t at, uint32_t now) {
    uint32_t distance = at - now;
    return distance < 0x80000000U ? distance : 0;
}

uint32_t fedmote_jitter(const struct fedmote_port *port, uint32_t limit_ms) {
    return 1 + port->random(port->context) % limit_ms;
}
