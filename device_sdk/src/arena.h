/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory plan of one device (protocol/SPEC.md, section 7, "Memory"): where each region of the caller's arena lies.
 * The converter computes the same numbers; a test compares them.
 */
#ifndef FEDMOTE_ARENA_H
#define FEDMOTE_ARENA_H

#include "package.h"

/* Most samples of one device: ranking needs two of the 16 bits of every rank for itself (select.c). */
#define FEDMOTE_SAMPLES_MAX 16383U

/* Offsets in bytes from the start of the arena. */
struct fedmote_layout {
    uint32_t receive, transmit; /* link buffers of fedmote_link_bytes() / 2 each */
    uint32_t encoder;
    uint32_t head;                /* parameter_bytes[head_parameters] of the head's arithmetic */
    uint32_t head_base, velocity; /* 4 bytes[head_parameters] each */
    uint32_t scratch;             /* of the head; inside `encoder`, beside the features */
    uint32_t samples;             /* loss f32[n], norm f32[n], rank u16[n], norm_rank u16[n] */
    uint32_t cache;               /* s8[cached][feature_count] */
    uint32_t cached;              /* how many embeddings fit, at most n */
    uint32_t required;            /* bytes without any cache: what must fit */
    uint32_t total;               /* bytes with all n embeddings cached */
};

/* Bytes of both link buffers: 2 * (FEDMOTE_BODY_MAX + 128), each rounded up to 16. */
uint32_t fedmote_link_bytes(void);

/* Lays out an arena of `arena_bytes` for `package`, a head in `arithmetic` and `sample_count` samples.
 * Errors: FEDMOTE_ERR_ARENA where `required` exceeds arena_bytes (layout->required then says the bytes needed),
 * FEDMOTE_ERR_NO_SAMPLES for zero samples, FEDMOTE_ERR_ARGUMENT for more than FEDMOTE_SAMPLES_MAX. */
FEDMOTE_MUST_CHECK int32_t fedmote_layout_compute(struct fedmote_layout *layout, const struct fedmote_package *package,
                                                  const struct fedmote_arithmetic *arithmetic, uint32_t sample_count,
                                                  uint32_t arena_bytes);

#endif
