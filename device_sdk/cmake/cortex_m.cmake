# SPDX-License-Identifier: Apache-2.0
#
# Images of a board with a Cortex-M: start-up, linker script and programs of ports/cortex_m with the port of a chip.

# The core and its float registers; M0 is the only one whose assembler has an older dialect by default.
set(fedmote_core_options -mcpu=${FEDMOTE_BOARD_CORE} -mthumb -masm-syntax-unified)
if(FEDMOTE_BOARD_HAS_FPU)
    list(APPEND fedmote_core_options -mfloat-abi=hard)
else()
    list(APPEND fedmote_core_options -mfloat-abi=soft)
endif()
set(fedmote_core_sources ports/cortex_m/startup.c)
if(FEDMOTE_BOARD_IS_UNALIGNED_TRAPPED)
    list(APPEND fedmote_core_options -mno-unaligned-access)
    list(APPEND fedmote_core_sources ports/cortex_m/aligned_memcpy.c)
endif()
target_compile_options(fedmote_device PUBLIC ${fedmote_core_options} PRIVATE -fstack-usage)
if(TARGET monocypher)
    target_compile_options(monocypher PRIVATE ${fedmote_core_options})
endif()

# fedmote_image(<name> HAS_SLOTS|NO_SLOTS <include directories> <source>...)
function(fedmote_image name slots directories)
    set(script "${CMAKE_CURRENT_BINARY_DIR}/${name}.ld")
    set(template "${CMAKE_CURRENT_SOURCE_DIR}/ports/cortex_m/image.ld.in")
    set(script_options "")
    if(slots STREQUAL "HAS_SLOTS")
        set(script_options -DFEDMOTE_IMAGE_HAS_SLOTS)
    endif()
    add_custom_command(
        OUTPUT "${script}"
        COMMAND "${CMAKE_C_COMPILER}" -E -P -x c ${script_options} "-I${FEDMOTE_GENERATED}" "${template}" -o "${script}"
        DEPENDS "${template}" "${FEDMOTE_GENERATED}/fedmote_board.h"
        VERBATIM)
    add_custom_target(${name}-script DEPENDS "${script}")
    add_executable(${name} ${ARGN} ${fedmote_core_sources})
    add_dependencies(${name} ${name}-script)
    target_include_directories(${name} PRIVATE "${FEDMOTE_GENERATED}" ports/cortex_m ${directories} ports/region ports/monocypher
                               src)
    target_compile_options(${name} PRIVATE ${FEDMOTE_WARNINGS} -ffunction-sections -fdata-sections -ffreestanding -fstack-usage)
    target_compile_definitions(${name} PRIVATE $<$<BOOL:${FEDMOTE_CHECKED}>:FEDMOTE_SEMIHOSTING>)
    # Freestanding: newlib lends memcpy, memset and a few functions of libm, and none of its start-up or system calls.
    target_link_options(${name} PRIVATE ${fedmote_core_options} -nostartfiles -specs=nano.specs -T "${script}"
                        -Wl,--gc-sections -Wl,--fatal-warnings "-Wl,-Map=${CMAKE_CURRENT_BINARY_DIR}/${name}.map")
    target_link_libraries(${name} PRIVATE fedmote::device fedmote_crypto)
    set_target_properties(${name} PROPERTIES SUFFIX ".elf" LINK_DEPENDS "${script}")
    add_custom_command(TARGET ${name} POST_BUILD VERBATIM
        COMMAND "${CMAKE_OBJCOPY}" -O binary "$<TARGET_FILE:${name}>" "${CMAKE_CURRENT_BINARY_DIR}/${name}.bin")
endfunction()

# fedmote_cortex_m_programs(INCLUDE <directory>... CHIP <source>... [COUNTERS <source>...] [STANDALONE <source>...]
# [DEVICE <source>...]): the programs that board.toml names. CHIP goes into all of them, COUNTERS into those that count
# instructions, DEVICE into fedmote-device, STANDALONE into all but that.
function(fedmote_cortex_m_programs)
    cmake_parse_arguments(port "" "" "INCLUDE;CHIP;COUNTERS;STANDALONE;DEVICE" ${ARGN})
    set(program_sources ${port_CHIP} ports/region/samples_region.c)
    set(results_sources ${program_sources} ${port_STANDALONE} ports/cortex_m/results.c)
    separate_arguments(programs UNIX_COMMAND "${FEDMOTE_BOARD_PROGRAMS}")
    if(FEDMOTE_FOOTPRINT_OPERATORS)
        set(programs "")
        fedmote_operator_table("${FEDMOTE_FOOTPRINT_OPERATORS}" table)
        fedmote_image(fedmote-footprint NO_SLOTS "${port_INCLUDE}" ${port_CHIP} examples/footprint/footprint.c)
        target_compile_definitions(fedmote-footprint PRIVATE "FEDMOTE_FOOTPRINT_OPERATORS=${table}")
        fedmote_image(fedmote-footprint-empty NO_SLOTS "${port_INCLUDE}" ${port_CHIP} examples/footprint/empty.c)
    endif()
    foreach(program IN LISTS programs)
        if(program STREQUAL "fedmote-device")
            fedmote_image(${program} HAS_SLOTS "${port_INCLUDE}" ${program_sources} ${port_DEVICE}
                          ports/cortex_m/device_main.c ports/cortex_m/entropy.c ports/cortex_m/journal_regions.c
                          ports/cortex_m/slots.c)
            if(FEDMOTE_BOARD_IS_PROVISIONED)
                target_sources(${program} PRIVATE ports/cortex_m/provision_board.c)
                target_compile_definitions(${program} PRIVATE FEDMOTE_PORT_PROVISION=provision_board)
            else()
                target_compile_definitions(${program} PRIVATE FEDMOTE_PORT_PROVISION=NULL)
            endif()
            # Size where the drivers are, as in the library; programs that count instructions stay as they were.
            target_compile_options(${program} PRIVATE "$<$<CONFIG:Release>:-Os>")
        elseif(program STREQUAL "fedmote-run")
            fedmote_image(${program} NO_SLOTS "${port_INCLUDE};examples/run" ${results_sources} ports/cortex_m/run_main.c
                          examples/run/run.c)
        elseif(program MATCHES "^fedmote-bench-(kernels|head)$")
            fedmote_image(${program} NO_SLOTS "${port_INCLUDE};examples/bench" ${results_sources} ${port_COUNTERS}
                          ports/cortex_m/bench_main.c examples/bench/bench.c examples/bench/${CMAKE_MATCH_1}.c)
        else()
            message(FATAL_ERROR "${FEDMOTE_BOARD_DIR}/board.toml: there is no program ${program}")
        endif()
    endforeach()
endfunction()
