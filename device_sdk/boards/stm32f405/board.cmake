# SPDX-License-Identifier: Apache-2.0
# Images of the STM32F405.

include(cmake/cortex_m.cmake)
fedmote_cortex_m_programs(
    INCLUDE ports/stm32f4
    CHIP ports/stm32f4/chip.c ports/stm32f4/clock.c ports/stm32f4/interrupts.c ports/stm32f4/uart.c ports/cortex_m/systick.c
    COUNTERS ports/stm32f4/counters.c
    DEVICE ports/stm32f4/flash.c ports/stm32f4/noise.c)
