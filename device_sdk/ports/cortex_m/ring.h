/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes between an interrupt and what it interrupts. A ring has one producer and one consumer. Indices run freely and
 * wrap at 2^32, which a power of two as size makes harmless; a byte is stored before the index that publishes it.
 */
#ifndef FEDMOTE_CORTEX_M_RING_H
#define FEDMOTE_CORTEX_M_RING_H

#include <stdbool.h>
#include <stdint.h>

struct ring {
    volatile uint8_t *bytes;
    uint32_t size;          /* of them: a power of two */
    volatile uint32_t head; /* bytes ever put in */
    volatile uint32_t tail; /* bytes ever taken out */
};

/* An empty ring over an array. */
#define RING_OVER(array)                                                                                               \
    { .bytes = (array), .size = sizeof(array) }

static inline bool ring_is_empty(const struct ring *ring) { return ring->head == ring->tail; }

/* Whether there was room. */
static inline bool ring_put(struct ring *ring, uint8_t byte) {
    if (ring->head - ring->tail == ring->size) {
        return false;
    }
    ring->bytes[ring->head & (ring->size - 1U)] = byte;
    ring->head++;
    return true;
}

/* Whether there was a byte. */
static inline bool ring_take(struct ring *ring, uint8_t *byte) {
    if (ring_is_empty(ring)) {
        return false;
    }
    *byte = ring->bytes[ring->tail & (ring->size - 1U)];
    ring->tail++;
    return true;
}

/* How many of `size` bytes the ring took. */
static inline int32_t ring_write(struct ring *ring, const uint8_t *bytes, uint32_t size) {
    uint32_t count = 0;
    while (count < size && ring_put(ring, bytes[count])) {
        count++;
    }
    return (int32_t)count;
}

/* How many bytes came out, at most `capacity`. */
static inline int32_t ring_read(struct ring *ring, uint8_t *bytes, uint32_t capacity) {
    uint32_t count = 0;
    while (count < capacity && ring_take(ring, &bytes[count])) {
        count++;
    }
    return (int32_t)count;
}

#endif
