/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FEDMOTE_CORTEX_M_STARTUP_H
#define FEDMOTE_CORTEX_M_STARTUP_H

#include <stdint.h>

#define BOARD_FAULT_MAGIC 0x544C4146U /* "FALT" */

/* What the last fault left; survives a reset but not a power cut. Valid where `magic` is BOARD_FAULT_MAGIC. */
struct board_fault {
    uint32_t magic;
    uint32_t pc, lr;     /* of the instruction that faulted and its caller; 0 where the stack was unusable */
    uint32_t cfsr, hfsr; /* the core's reasons */
    uint32_t address;    /* of the access, where cfsr says that it is valid */
};
extern struct board_fault board_fault;

/* For the entries of a chip's interrupt table, which follows the core's vectors from section .vectors.interrupts. */
typedef void (*board_handler)(void);
void unexpected_handler(void);

#endif
