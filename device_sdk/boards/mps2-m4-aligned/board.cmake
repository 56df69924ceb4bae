# SPDX-License-Identifier: Apache-2.0
# Images of an emulated board of Arm's.

include(cmake/cortex_m.cmake)
fedmote_cortex_m_programs(CHIP ports/cmsdk/chip.c COUNTERS ports/cmsdk/counters.c)
