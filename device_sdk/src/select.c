/* SPDX-License-Identifier: Apache-2.0
 *
 * Ranking in the memory of its result. rank[] is used three times:
 *
 * 1. as the permutation that heap sort orders by value: 2 n log2 n comparisons at most;
 * 2. inverted in place along its cycles, n moves: entry i becomes the position of sample i in the sorted order;
 * 3. positions of equal values are lowered to that of the first of them.
 *
 * Step 2 marks an entry that is done in bit 15; step 3 needs to know which sorted positions hold the same value as the
 * one before, which is written into bit 14 of the entry of that number before step 2 and stays there. 14 bits are left
 * for the index: n <= FEDMOTE_SAMPLES_MAX. Step 3 walks over a group of s equal values s times, s^2 / 2 reads of a bit:
 * only where all values are equal that makes n^2 / 2.
 */
#include "select.h"

#include <math.h>

#define DONE 0x8000U  /* bit 15: entry is inverted */
#define TIED 0x4000U  /* bit 14: this sorted position has the value of the one before */
#define INDEX 0x3FFFU /* bits 0 to 13 */

/* Lets the entry at `root` sink until the heap order holds in order[0..n). */
static void sink(const float *values, uint16_t *order, uint32_t root, uint32_t n) {
    const uint16_t item = order[root];
    for (uint32_t child = 2U * root + 1U; child < n; child = 2U * root + 1U) {
        if (child + 1U < n && values[order[child]] < values[order[child + 1U]]) {
            child++;
        }
        if (!(values[item] < values[order[child]])) {
            break;
        }
        order[root] = order[child];
        root = child;
    }
    order[root] = item;
}

static void heap_sort(const float *values, uint16_t *order, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        order[i] = (uint16_t)i;
    }
    for (uint32_t root = n / 2U; root-- > 0U;) {
        sink(values, order, root, n);
    }
    for (uint32_t last = n; last-- > 1U;) {
        const uint16_t greatest = order[0];
        order[0] = order[last];
        order[last] = greatest;
        sink(values, order, 0U, last);
    }
}

static void mark_ties(const float *values, uint16_t *order, uint32_t n) {
    for (uint32_t i = n; i-- > 1U;) {
        if (!(values[order[i - 1U]] < values[order[i]])) {
            order[i] = (uint16_t)(order[i] | TIED);
        }
    }
}

/* order[position] = index becomes order[index] = position; bits TIED stay where they are. */
static void invert(uint16_t *order, uint32_t n) {
    for (uint32_t start = 0; start < n; start++) {
        uint32_t position = start;
        uint32_t index = order[position] & INDEX;
        while (!(order[index] & DONE)) {
            const uint32_t next = order[index] & INDEX;
            order[index] = (uint16_t)((order[index] & TIED) | DONE | position);
            position = index;
            index = next;
        }
    }
}

void fedmote_rank(const float *values, uint32_t n, uint16_t *rank) {
    heap_sort(values, rank, n);
    mark_ties(values, rank, n);
    invert(rank, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = rank[i] & INDEX;
        while (rank[position] & TIED) {
            position--;
        }
        /* The tie bit of position i must outlive this: later entries still look at it. */
        rank[i] = (uint16_t)((rank[i] & TIED) | DONE | position);
    }
    for (uint32_t i = 0; i < n; i++) {
        rank[i] = (uint16_t)((rank[i] & INDEX) + 1U);
    }
}

uint32_t fedmote_mix(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85EBCA6BU;
    h ^= h >> 13;
    h *= 0xC2B2AE35U;
    h ^= h >> 16;
    return h;
}

uint32_t fedmote_draw(uint32_t seed, uint32_t device, uint32_t epoch, uint32_t sample, uint32_t k) {
    const uint32_t words[4] = {device, epoch, sample, k};
    uint32_t h = seed;
    for (uint32_t i = 0; i < 4U; i++) {
        h = fedmote_mix((h ^ words[i]) + 0x9E3779B9U);
    }
    return h;
}

/* draw < base^exponent * 2^32, never where the exponent is 0. */
static bool is_drawn(const struct fedmote_selector *selector, uint32_t epoch, uint32_t sample, uint32_t k, float base,
                     float exponent) {
    if (!(exponent > 0.0f)) {
        return false;
    }
    const float bound = powf(base, exponent) * 4294967296.0f;
    if (!(bound < 4294967296.0f)) {
        return true; /* beyond the range of uint32_t: base is 1 */
    }
    return fedmote_draw(selector->seed, selector->device, epoch, sample, k) < (uint32_t)ceilf(bound);
}

enum fedmote_group fedmote_select(const struct fedmote_selector *selector, uint32_t sample, uint32_t epoch) {
    if (sample >= selector->limit) {
        return FEDMOTE_GROUP_DISCARD;
    }
    const float n = (float)selector->sample_count;
    const float u = (float)selector->rank[sample] / n;
    const float v = (float)selector->norm_rank[sample] / n;
    const bool is_dropped = is_drawn(selector, epoch, sample, 0U, 1.0f - u, selector->alpha);
    const bool is_high_loss = is_drawn(selector, epoch, sample, 1U, u, selector->beta);
    const bool is_high_norm = is_drawn(selector, epoch, sample, 2U, v, selector->gamma);
    bool is_for_partner;
    if (selector->gamma_order == 0U) {
        is_for_partner = is_high_loss || (!is_dropped && is_high_norm);
    } else {
        is_for_partner = is_high_loss && (is_high_norm || !(selector->gamma > 0.0f));
    }
    if (is_for_partner) {
        return FEDMOTE_GROUP_PARTNER;
    }
    return is_dropped ? FEDMOTE_GROUP_DISCARD : FEDMOTE_GROUP_DEVICE;
}
