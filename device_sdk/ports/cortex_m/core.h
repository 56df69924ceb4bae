/* SPDX-License-Identifier: Apache-2.0
 *
 * The registers of the Cortex-M cores that this SDK touches (Armv6-M to Armv8.1-M architecture manuals).
 */
#ifndef FEDMOTE_CORTEX_M_CORE_H
#define FEDMOTE_CORTEX_M_CORE_H

#include <stdint.h>

#define CORE_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define SYSTICK_CONTROL CORE_REGISTER(0xE000E010U)
#define SYSTICK_RELOAD CORE_REGISTER(0xE000E014U)
#define SYSTICK_VALUE CORE_REGISTER(0xE000E018U)
#define NVIC_ENABLE(word) CORE_REGISTER(0xE000E100U + 4U * (word))
#define SCB_VTOR CORE_REGISTER(0xE000ED08U)
#define SCB_CCR CORE_REGISTER(0xE000ED14U)
#define SCB_SHCSR CORE_REGISTER(0xE000ED24U)
#define SCB_CFSR CORE_REGISTER(0xE000ED28U)
#define SCB_HFSR CORE_REGISTER(0xE000ED2CU)
#define SCB_BFAR CORE_REGISTER(0xE000ED38U)
#define SCB_CPACR CORE_REGISTER(0xE000ED88U)

#define SYSTICK_COUNTING (1U << 0)
#define SYSTICK_INTERRUPTING (1U << 1)
#define SYSTICK_CORE_CLOCK (1U << 2)
#define SCB_CCR_TRAP_UNALIGNED (1U << 3)
#define SCB_SHCSR_OWN_NAMES (7U << 16) /* memory, bus and usage faults by their own names */
#define SCB_CPACR_FLOAT (0xFU << 20)   /* float and vector registers */

#endif
