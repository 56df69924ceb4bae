/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FEDMOTE_CONFIG_H
#define FEDMOTE_CONFIG_H

/* Largest message body that this device accepts and sends, bytes, 200 to 24000; a multiple of 8 plus
 * limit-chunk-overhead and limit-seal wastes nothing. Costs 2 * (FEDMOTE_BODY_MAX + 128) bytes of arena. */
#ifndef FEDMOTE_BODY_MAX
#define FEDMOTE_BODY_MAX 529
#endif

/* Multiply-accumulates that one call of fedmote_step() may do, rounded up to one unit of an operator. */
#ifndef FEDMOTE_MACS_PER_STEP
#define FEDMOTE_MACS_PER_STEP 20000
#endif

#endif
