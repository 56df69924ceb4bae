/* SPDX-License-Identifier: Apache-2.0
 *
 * The frozen int8 encoder: runs the operators of a package's plan inside one block of memory, a bounded piece at a
 * time.
 */
#ifndef FEDMOTE_ENCODER_H
#define FEDMOTE_ENCODER_H

#include "package.h"

struct fedmote_encoder {
    const struct fedmote_package *package; /* borrowed */
    int8_t *memory;                        /* s8[encoder_bytes], 16-aligned, borrowed */
    const uint8_t *record;                 /* operator to go on with */
    uint32_t op;                           /* its index */
    uint32_t unit;                         /* its next unit */
};

/* Binds the encoder to an opened package and to memory of package->encoder_bytes. Cannot fail. */
void fedmote_encoder_init(struct fedmote_encoder *encoder, const struct fedmote_package *package, int8_t *memory);

/* Where the next sample goes: s8[input_count], valid until the first fedmote_encoder_run(). */
int8_t *fedmote_encoder_input(struct fedmote_encoder *encoder);

/* Does at least one unit and stops before a unit that would exceed `macs`. Returns FEDMOTE_BUSY, or FEDMOTE_OK when the
 * features are complete; the next call then begins a new inference. Cannot fail on an opened package. */
int32_t fedmote_encoder_run(struct fedmote_encoder *encoder, uint32_t macs);

/* s8[feature_count], valid from FEDMOTE_OK until the input is written again. */
const int8_t *fedmote_encoder_features(const struct fedmote_encoder *encoder);

#endif
