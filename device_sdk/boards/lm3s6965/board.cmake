# SPDX-License-Identifier: Apache-2.0
# Images of the LM3S6965.

include(cmake/cortex_m.cmake)
fedmote_cortex_m_programs(
    INCLUDE ports/lm3s
    CHIP ports/lm3s/chip.c ports/lm3s/clock.c ports/lm3s/interrupts.c ports/lm3s/uart.c ports/cortex_m/systick.c
    COUNTERS ports/lm3s/counters.c
    DEVICE ports/lm3s/flash.c ports/lm3s/noise.c)
