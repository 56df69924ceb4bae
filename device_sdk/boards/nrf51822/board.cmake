# SPDX-License-Identifier: Apache-2.0
# Images of the nRF51822.

include(cmake/cortex_m.cmake)
fedmote_cortex_m_programs(
    INCLUDE ports/nrf51
    CHIP ports/nrf51/chip.c
    STANDALONE ports/nrf51/polled_line.c
    COUNTERS ports/nrf51/counters.c
    DEVICE ports/nrf51/device_line.c ports/nrf51/flash.c ports/nrf51/interrupts.c ports/nrf51/noise.c)
