/* SPDX-License-Identifier: Apache-2.0
 *
 * The registers of the STM32F405 that this port touches (reference manual RM0090), and nothing else of them; those of
 * the core are in core.h.
 */
#ifndef FEDMOTE_STM32F4_REGISTERS_H
#define FEDMOTE_STM32F4_REGISTERS_H

#include <stdint.h>

#include "core.h"

#define STM32_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* Reset and clock control. */
#define RCC_CR STM32_REGISTER(0x40023800U)
#define RCC_PLLCFGR STM32_REGISTER(0x40023804U)
#define RCC_CFGR STM32_REGISTER(0x40023808U)
#define RCC_AHB1ENR STM32_REGISTER(0x40023830U)
#define RCC_AHB2ENR STM32_REGISTER(0x40023834U)
#define RCC_APB1ENR STM32_REGISTER(0x40023840U)
#define RCC_APB2ENR STM32_REGISTER(0x40023844U)
#define RCC_CR_HSIRDY (1U << 1)
#define RCC_CR_HSEON (1U << 16)
#define RCC_CR_HSERDY (1U << 17)
#define RCC_CR_PLLON (1U << 24)
#define RCC_CR_PLLRDY (1U << 25)
#define RCC_PLLCFGR_SOURCE_HSE (1U << 22)
#define RCC_CFGR_SWITCH_PLL 2U
#define RCC_CFGR_SWITCH_MASK 3U
#define RCC_CFGR_STATUS_PLL (2U << 2)
#define RCC_CFGR_STATUS_MASK (3U << 2)
#define RCC_CFGR_APB1_BY_4 (5U << 10)
#define RCC_CFGR_APB2_BY_2 (4U << 13)
#define RCC_AHB1ENR_GPIOA (1U << 0)
#define RCC_AHB1ENR_GPIOC (1U << 2)
#define RCC_AHB2ENR_RNG (1U << 6)
#define RCC_APB1ENR_TIM2 (1U << 0)
#define RCC_APB1ENR_TIM5 (1U << 3)
#define RCC_APB1ENR_PWR (1U << 28)
#define RCC_APB2ENR_USART1 (1U << 4)

#define PWR_CR STM32_REGISTER(0x40007000U)
#define PWR_CR_SCALE_1 (1U << 14)

/* Flash controller. */
#define FLASH_ACR STM32_REGISTER(0x40023C00U)
#define FLASH_KEYR STM32_REGISTER(0x40023C04U)
#define FLASH_SR STM32_REGISTER(0x40023C0CU)
#define FLASH_CR STM32_REGISTER(0x40023C10U)
#define FLASH_ACR_LATENCY_5 5U
#define FLASH_ACR_PREFETCH (1U << 8)
#define FLASH_ACR_INSTRUCTION_CACHE (1U << 9)
#define FLASH_ACR_DATA_CACHE (1U << 10)
#define FLASH_ACR_DATA_CACHE_RESET (1U << 12)
#define FLASH_KEY_1 0x45670123U
#define FLASH_KEY_2 0xCDEF89ABU
#define FLASH_SR_ERRORS 0xF2U /* operation, write protection, alignment, parallelism, sequence */
#define FLASH_SR_BUSY (1U << 16)
#define FLASH_CR_PROGRAM (1U << 0)
#define FLASH_CR_SECTOR_ERASE (1U << 1)
#define FLASH_CR_SECTOR(number) ((number) << 3)
#define FLASH_CR_WORDS (2U << 8)
#define FLASH_CR_START (1U << 16)
#define FLASH_CR_LOCK (1U << 31)

/* Pins. */
#define GPIOA_BASE 0x40020000U
#define GPIOC_BASE 0x40020800U
#define GPIO_MODER(port) STM32_REGISTER((port) + 0x00U)
#define GPIO_PUPDR(port) STM32_REGISTER((port) + 0x0CU)
#define GPIO_ODR(port) STM32_REGISTER((port) + 0x14U)
#define GPIO_AFR_HIGH(port) STM32_REGISTER((port) + 0x24U)

/* Serial line. */
#define USART1_SR STM32_REGISTER(0x40011000U)
#define USART1_DR STM32_REGISTER(0x40011004U)
#define USART1_BRR STM32_REGISTER(0x40011008U)
#define USART1_CR1 STM32_REGISTER(0x4001100CU)
#define USART_SR_OVERRUN (1U << 3)
#define USART_SR_RECEIVED (1U << 5)
#define USART_SR_SENDABLE (1U << 7)
#define USART_CR1_RECEIVER (1U << 2)
#define USART_CR1_TRANSMITTER (1U << 3)
#define USART_CR1_RECEIVED_INTERRUPT (1U << 5)
#define USART_CR1_SENDABLE_INTERRUPT (1U << 7)
#define USART_CR1_ENABLE (1U << 13)
#define USART1_INTERRUPT 37U

/* Random number generator. */
#define RNG_CR STM32_REGISTER(0x50060800U)
#define RNG_SR STM32_REGISTER(0x50060804U)
#define RNG_DR STM32_REGISTER(0x50060808U)
#define RNG_CR_ENABLE (1U << 2)
#define RNG_SR_READY (1U << 0)
#define RNG_SR_ERRORS 6U

#endif
