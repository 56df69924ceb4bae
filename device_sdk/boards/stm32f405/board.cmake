# SPDX-License-Identifier: Apache-2.0
# Images of the STM32F405: fedmote-device (the federated device), fedmote-run (inference over the samples region) and, for
# the emulator alone, fedmote-bench-kernels and fedmote-bench-head (instruction counts).

set(core_options -mcpu=${FEDMOTE_BOARD_CORE} -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard)
target_compile_options(fedmote_device PUBLIC ${core_options} PRIVATE -fstack-usage)
fedmote_use_kernels(${FEDMOTE_BOARD_KERNELS})

if(TARGET monocypher)
    target_compile_options(monocypher PRIVATE ${core_options})
endif()

# fedmote_image(<name> HAS_SLOTS|NO_SLOTS <source>...)
function(fedmote_image name slots)
    set(script "${CMAKE_CURRENT_BINARY_DIR}/${name}.ld")
    set(script_options "")
    if(slots STREQUAL "HAS_SLOTS")
        set(script_options -DFEDMOTE_IMAGE_HAS_SLOTS)
    endif()
    add_custom_command(
        OUTPUT "${script}"
        COMMAND "${CMAKE_C_COMPILER}" -E -P -x c ${script_options} "-I${FEDMOTE_GENERATED}"
                "${FEDMOTE_BOARD_DIR}/image.ld.in" -o "${script}"
        DEPENDS "${FEDMOTE_BOARD_DIR}/image.ld.in" "${FEDMOTE_GENERATED}/fedmote_board.h"
        VERBATIM)
    add_custom_target(${name}-script DEPENDS "${script}")
    add_executable(${name} ${ARGN} "${FEDMOTE_BOARD_DIR}/startup.c")
    add_dependencies(${name} ${name}-script)
    target_include_directories(${name} PRIVATE "${FEDMOTE_GENERATED}" "${FEDMOTE_BOARD_DIR}" ports/stm32f4 ports/region
                               ports/monocypher src)
    target_compile_options(${name} PRIVATE ${FEDMOTE_WARNINGS} -ffunction-sections -fdata-sections -ffreestanding -fstack-usage)
    target_compile_definitions(${name} PRIVATE $<$<BOOL:${FEDMOTE_CHECKED}>:FEDMOTE_SEMIHOSTING>)
    # Freestanding: newlib lends memcpy, memset and a few functions of libm, and none of its start-up or system calls.
    target_link_options(${name} PRIVATE ${core_options} -nostartfiles -specs=nano.specs -T "${script}" -Wl,--gc-sections
                        -Wl,--fatal-warnings "-Wl,-Map=${CMAKE_CURRENT_BINARY_DIR}/${name}.map")
    target_link_libraries(${name} PRIVATE fedmote::device fedmote_crypto)
    set_target_properties(${name} PROPERTIES SUFFIX ".elf" LINK_DEPENDS "${script}")
    add_custom_command(TARGET ${name} POST_BUILD VERBATIM
        COMMAND "${CMAKE_OBJCOPY}" -O binary "$<TARGET_FILE:${name}>" "${CMAKE_CURRENT_BINARY_DIR}/${name}.bin")
endfunction()

set(port_sources
    ports/stm32f4/clock.c ports/stm32f4/tick.c ports/stm32f4/uart.c ports/stm32f4/flash.c ports/stm32f4/entropy.c
    ports/region/samples_region.c)
fedmote_image(fedmote-device HAS_SLOTS ${port_sources} "${FEDMOTE_BOARD_DIR}/device_main.c")
fedmote_image(fedmote-run NO_SLOTS ${port_sources} "${FEDMOTE_BOARD_DIR}/run_main.c" "${FEDMOTE_BOARD_DIR}/results.c"
              examples/run/run.c)
target_include_directories(fedmote-run PRIVATE examples/run)
foreach(subject kernels head)
    fedmote_image(fedmote-bench-${subject} NO_SLOTS ${port_sources} "${FEDMOTE_BOARD_DIR}/bench_main.c"
                  "${FEDMOTE_BOARD_DIR}/results.c" examples/bench/bench.c examples/bench/${subject}.c)
    target_include_directories(fedmote-bench-${subject} PRIVATE examples/bench)
endforeach()
