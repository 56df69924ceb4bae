/* SPDX-License-Identifier: Apache-2.0
 *
 * How programs that are no federated device hand their results to the host: one blob over the serial
 * line, as `data` messages with handle 0 in serial frames, in order; or `refuse` with the reason.
 */
#ifndef FEDMOTE_CORTEX_M_RESULTS_H
#define FEDMOTE_CORTEX_M_RESULTS_H

#include "link.h"

struct results {
    struct fedmote_line line;
    uint32_t offset; /* bytes of the blob that were sent */
};

/* Opens the line; after chip_start(). There is one line, so there is one struct. */
struct results *results_open(void);

/* Sends the next `size` bytes of the blob and waits until the line has taken them. `context` is the struct. 0, or an
 * error of the line. */
int32_t results_emit(void *context, const uint8_t *bytes, uint32_t size);

/* Tells the host why there are no results. */
void results_refuse(struct results *results, int32_t status);

#endif
