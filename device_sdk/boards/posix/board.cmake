# SPDX-License-Identifier: Apache-2.0
# Programs of this machine: fedmote-device (the federated device) and fedmote-run (inference), and the compiled example.

set(posix_options -ffunction-sections -fdata-sections -fstack-usage)
target_compile_options(fedmote_device PRIVATE -fstack-usage)
if(FEDMOTE_CHECKED)
    set(checks -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(fedmote_device PUBLIC ${checks} -g)
    target_link_options(fedmote_device PUBLIC ${checks})
endif()

add_executable(fedmote-device
    ports/posix/device_main.c ports/posix/cache.c ports/posix/clock.c ports/posix/files.c ports/posix/flash.c ports/posix/stream.c
    ports/region/samples_region.c)
add_executable(fedmote-run
    ports/posix/run_main.c ports/posix/files.c examples/run/run.c ports/region/samples_region.c)
target_include_directories(fedmote-run PRIVATE examples/run)
add_executable(fedmote-minimal examples/minimal/main.c ports/template/port.c)
target_include_directories(fedmote-minimal PRIVATE ports/template)

foreach(program fedmote-device fedmote-run fedmote-minimal)
    target_include_directories(${program} PRIVATE "${FEDMOTE_GENERATED}" ports/posix ports/region
                               ports/monocypher src)
    target_compile_options(${program} PRIVATE ${FEDMOTE_WARNINGS} ${posix_options})
    target_link_libraries(${program} PRIVATE fedmote::device fedmote_crypto)
endforeach()
