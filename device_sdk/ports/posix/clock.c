/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "posix.h"

uint32_t posix_now_ms(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000U + (uint64_t)now.tv_nsec / 1000000U);
}

uint32_t posix_random(void) {
    uint32_t value = 0;
    const int descriptor = open("/dev/urandom", O_RDONLY);
    if (descriptor >= 0) {
        const ssize_t got = read(descriptor, &value, sizeof value);
        (void)close(descriptor);
        if (got == (ssize_t)sizeof value) {
            return value;
        }
    }
    /* Entropy for a nonce and for jitter: process and instant are enough where there is no device for it. */
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (uint32_t)now.tv_nsec * 2654435761U ^ (uint32_t)getpid();
}
