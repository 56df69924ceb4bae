/* SPDX-License-Identifier: Apache-2.0
 *
 * A wall clock that is wrong, for processes that are started with this in LD_PRELOAD: the file that FEDMOTE_WALL_CLOCK
 * names holds seconds (int64) that are added to the time of day, and may change them at any moment. Clocks that only
 * count stay right.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void open_offset(void) {
    const char *path = getenv("FEDMOTE_WALL_CLOCK");
    const int descriptor = path == NULL ? -1 : open(path, O_RDONLY);
    if (descriptor >= 0) {
        void *bytes = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, descriptor, 0);
        offset = bytes == MAP_FAILED ? NULL : bytes;
        (void)close(descriptor);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    const int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += *offset;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    const int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *seconds) {
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (seconds != NULL) {
        *seconds = now.tv_sec;
    }
    return now.tv_sec;
}
