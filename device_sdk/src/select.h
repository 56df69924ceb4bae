/* SPDX-License-Identifier: Apache-2.0
 *
 * Centaur's sample selection (protocol/SPEC.md, section 5): which samples are discarded, trained here or sent to the
 * partner. Ranks are computed once per participation; the draws come from a counter-based generator, so that any
 * group can be recomputed at any time and nothing but the ranks is stored.
 */
#ifndef FEDMOTE_SELECT_H
#define FEDMOTE_SELECT_H

#include "fedmote/fedmote.h"

enum fedmote_group { FEDMOTE_GROUP_DISCARD, FEDMOTE_GROUP_DEVICE, FEDMOTE_GROUP_PARTNER };

struct fedmote_selector {
    uint32_t seed;
    uint32_t device; /* CRC-32 of the device's id */
    float alpha, beta, gamma;
    uint32_t gamma_order;      /* 0 adds to the partner's group, 1 reduces it */
    uint32_t sample_count;     /* n */
    uint32_t limit;            /* only samples with index < limit may be selected: floor(n * gain) */
    const uint16_t *rank;      /* u16[n], 1 to n, of the loss; ties share the lowest */
    const uint16_t *norm_rank; /* u16[n], of the gradient norm */
};

/* Ranks of values[n]: rank[i] = 1 + number of values below values[i]. n is at most FEDMOTE_SAMPLES_MAX (arena.h).
 * Needs no memory beside rank[n] (select.c says how) and at most 2 n log2 n comparisons; a group of s equal values
 * costs s^2 / 2 looks at one bit on top. */
void fedmote_rank(const float *values, uint32_t n, uint16_t *rank);

/* Spreads the bits of a word over all of it: the finaliser of MurmurHash3 (public domain, Austin Appleby). */
uint32_t fedmote_mix(uint32_t h);

/* The counter-based generator: uniform in [0, 2^32). */
uint32_t fedmote_draw(uint32_t seed, uint32_t device, uint32_t epoch, uint32_t sample, uint32_t k);

/* The group of a sample in an epoch. */
enum fedmote_group fedmote_select(const struct fedmote_selector *selector, uint32_t sample, uint32_t epoch);

#endif
