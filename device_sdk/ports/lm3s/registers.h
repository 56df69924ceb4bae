/* SPDX-License-Identifier: Apache-2.0
 *
 * The registers of the LM3S6965 that this port touches (data sheet of the Stellaris LM3S6965), and nothing else of
 * them; those of the core are in core.h.
 */
#ifndef FEDMOTE_LM3S_REGISTERS_H
#define FEDMOTE_LM3S_REGISTERS_H

#include "core.h"

/* System control. */
#define SYSCTL_RIS CORE_REGISTER(0x400FE050U)
#define SYSCTL_RCC CORE_REGISTER(0x400FE060U)
#define SYSCTL_RCGC0 CORE_REGISTER(0x400FE100U)
#define SYSCTL_RCGC1 CORE_REGISTER(0x400FE104U)
#define SYSCTL_RCGC2 CORE_REGISTER(0x400FE108U)
#define SYSCTL_USECRL CORE_REGISTER(0x400FE140U)
#define SYSCTL_RIS_PLL_LOCKED (1U << 6)
#define SYSCTL_RCC_MAIN_OSCILLATOR_OFF (1U << 0)
#define SYSCTL_RCC_SOURCE_MASK (3U << 4) /* 0 is the main oscillator */
#define SYSCTL_RCC_CRYSTAL_MASK (0xFU << 6)
#define SYSCTL_RCC_CRYSTAL_8_MHZ (0xEU << 6)
#define SYSCTL_RCC_BYPASS (1U << 11)
#define SYSCTL_RCC_PLL_OFF (1U << 13)
#define SYSCTL_RCC_USE_DIVIDER (1U << 22)
#define SYSCTL_RCC_DIVIDER_MASK (0xFU << 23)
#define SYSCTL_RCC_DIVIDER_4 (3U << 23) /* 200 MHz of the PLL by 4 */
#define SYSCTL_RCGC0_WATCHDOG (1U << 3)
#define SYSCTL_RCGC1_UART0 (1U << 0)
#define SYSCTL_RCGC2_GPIOA (1U << 0)
#define SYSCTL_RCGC2_GPIOF (1U << 5)

/* Flash controller. */
#define FLASH_FMA CORE_REGISTER(0x400FD000U)
#define FLASH_FMD CORE_REGISTER(0x400FD004U)
#define FLASH_FMC CORE_REGISTER(0x400FD008U)
#define FLASH_FCRIS CORE_REGISTER(0x400FD00CU)
#define FLASH_FCMISC CORE_REGISTER(0x400FD014U)
#define FLASH_FMC_KEY 0xA4420000U
#define FLASH_FMC_WRITE (1U << 0)
#define FLASH_FMC_ERASE (1U << 1)
#define FLASH_ACCESS_ERROR (1U << 0) /* of FCRIS and FCMISC: the page is protected */

/* Pins. */
#define GPIOA_BASE 0x40004000U
#define GPIOF_BASE 0x40025000U
#define GPIO_DATA(port, pins) CORE_REGISTER((port) + ((pins) << 2)) /* the address masks the pins */
#define GPIO_DIRECTION(port) CORE_REGISTER((port) + 0x400U)
#define GPIO_ALTERNATE(port) CORE_REGISTER((port) + 0x420U)
#define GPIO_PULL_UP(port) CORE_REGISTER((port) + 0x510U)
#define GPIO_DIGITAL(port) CORE_REGISTER((port) + 0x51CU)

/* Serial line (PL011). */
#define UART0_DATA CORE_REGISTER(0x4000C000U)
#define UART0_FLAGS CORE_REGISTER(0x4000C018U)
#define UART0_INTEGER_DIVISOR CORE_REGISTER(0x4000C024U)
#define UART0_FRACTION_DIVISOR CORE_REGISTER(0x4000C028U)
#define UART0_LINE CORE_REGISTER(0x4000C02CU)
#define UART0_CONTROL CORE_REGISTER(0x4000C030U)
#define UART0_LEVELS CORE_REGISTER(0x4000C034U)
#define UART0_MASK CORE_REGISTER(0x4000C038U)
#define UART0_CLEAR CORE_REGISTER(0x4000C044U)
#define UART_FLAGS_EMPTY (1U << 4) /* nothing received */
#define UART_FLAGS_FULL (1U << 5)  /* no room to send */
#define UART_LINE_8_BITS (3U << 5)
#define UART_LINE_FIFOS (1U << 4)
#define UART_LEVELS_HALF 0x12U /* both interrupts with the FIFOs half full */
#define UART_CONTROL_ON 0x301U /* the line, its transmitter, its receiver */
#define UART_RECEIVED (1U << 4)
#define UART_SENDABLE (1U << 5)
#define UART_RECEIVE_PAUSE (1U << 6) /* fewer bytes than the level, and silence since */
#define UART0_INTERRUPT 5U

/* Watchdog. */
#define WATCHDOG_LOAD CORE_REGISTER(0x40000000U)
#define WATCHDOG_VALUE CORE_REGISTER(0x40000004U)

#endif
