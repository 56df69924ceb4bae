/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader of partition packages (protocol/SPEC.md, section 7). A package is read in place: this struct only points into
 * it. After fedmote_package_open() has returned FEDMOTE_OK, every offset that encoder.c and head.c use is inside its
 * section or inside encoder_bytes, and no arithmetic on them overflows: they check nothing again.
 */
#ifndef FEDMOTE_PACKAGE_H
#define FEDMOTE_PACKAGE_H

#include "fedmote/fedmote_operators.h"
#include "head.h"

struct fedmote_package {
    const struct fedmote_operator *const *operators; /* that the program has; ends with NULL */
    const uint8_t *bytes;                            /* borrowed; 16-aligned */
    uint32_t size;                                   /* bytes of the package */
    const uint8_t *hash;                             /* [32], inside the package */
    const uint8_t *ops;                              /* first operator record */
    uint32_t op_count;
    const uint8_t *weights; /* section `weights` */
    const float *head;      /* [head_parameters], inside the package, 4-aligned */

    uint32_t encoder_bytes; /* encoder arena */
    uint32_t input_offset, input_count;
    uint32_t feature_offset, feature_count;
    uint32_t macs;

    struct fedmote_head_shape head_shape; /* with the quantization of the features */
    uint32_t head_parameters;
};

/* Checks everything, in the order header, checksum, hash (where the port has one), sections, plan, head, and fills
 * `package`. Of the port, only `hash` and `operators` are used. Both the table of operators and `bytes` are borrowed
 * for as long as `package` is used. `size` may exceed the package's own size (a slot).
 * Errors: FEDMOTE_ERR_PACKAGE_* by what is wrong; nothing is written on error except `package` itself. */
FEDMOTE_MUST_CHECK int32_t fedmote_package_open(struct fedmote_package *package, const struct fedmote_port *port,
                                                const uint8_t *bytes, uint32_t size);

#endif
