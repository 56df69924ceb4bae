/* SPDX-License-Identifier: Apache-2.0
 *
 * One byte stream that is opened again whenever it breaks. A TCP connection is begun and finished by poll(), and while
 * there is none reads and writes move no bytes. Nothing here blocks but the resolver, for a host that is a name.
 */
#define _DEFAULT_SOURCE
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "posix.h"

static void set_raw(int descriptor) {
    struct termios line;
    if (tcgetattr(descriptor, &line) != 0) {
        return; /* not a terminal: nothing to set */
    }
    cfmakeraw(&line);
    line.c_cflag |= CLOCAL | CREAD;
    (void)cfsetispeed(&line, B115200);
    (void)cfsetospeed(&line, B115200);
    (void)tcsetattr(descriptor, TCSANOW, &line);
}

/* A non-blocking socket that is connected or on its way; -1 where no address of the target answers. */
static int open_tcp(struct stream *stream) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int descriptor = -1;
    if (getaddrinfo(stream->target, stream->service, &hints, &found) != 0) {
        return -1;
    }
    for (const struct addrinfo *address = found; address != NULL && descriptor < 0; address = address->ai_next) {
        descriptor = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
        if (descriptor < 0) {
            continue;
        }
        const int on = 1;
        (void)setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)fcntl(descriptor, F_SETFL, O_NONBLOCK);
        stream->is_connecting = true;
        if (connect(descriptor, address->ai_addr, address->ai_addrlen) != 0 && errno != EINPROGRESS) {
            (void)close(descriptor);
            descriptor = -1;
        }
    }
    freeaddrinfo(found);
    return descriptor;
}

static int open_serial(const struct stream *stream) {
    const int descriptor = open(stream->target, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (descriptor >= 0) {
        set_raw(descriptor);
    }
    return descriptor;
}

/* A new pseudo terminal, raw on its other end too; that end is kept open here once, so that its settings last until
 * the peer comes and no read sees a hang-up between two peers. */
static int open_pty(struct stream *stream) {
    const int descriptor = posix_openpt(O_RDWR | O_NOCTTY);
    if (descriptor < 0) {
        return -1;
    }
    const char *name = grantpt(descriptor) == 0 && unlockpt(descriptor) == 0 ? ptsname(descriptor) : NULL;
    const int other = name != NULL ? open(name, O_RDWR | O_NOCTTY) : -1;
    if (other < 0 || strlen(name) >= sizeof stream->target) {
        (void)close(descriptor);
        return -1;
    }
    set_raw(other);
    (void)fcntl(descriptor, F_SETFL, O_NONBLOCK);
    memcpy(stream->target, name, strlen(name) + 1U);
    return descriptor;
}

static void try_open(struct stream *stream) {
    stream->is_connecting = false;
    stream->retry_at_ms = posix_now_ms() + STREAM_RETRY_MS;
    stream->descriptor = stream->kind == STREAM_TCP ? open_tcp(stream) : open_serial(stream);
}

bool stream_init(struct stream *stream, enum stream_kind kind, const char *target) {
    memset(stream, 0, sizeof *stream);
    stream->kind = kind;
    stream->descriptor = -1;
    if (kind == STREAM_PTY) {
        stream->descriptor = open_pty(stream);
        return stream->descriptor >= 0;
    }
    const char *colon = kind == STREAM_TCP ? strrchr(target, ':') : target + strlen(target);
    if (colon == NULL || colon == target || (size_t)(colon - target) >= sizeof stream->target) {
        return false;
    }
    memcpy(stream->target, target, (size_t)(colon - target));
    if (kind == STREAM_TCP) {
        const size_t size = strlen(colon + 1);
        if (size == 0U || size >= sizeof stream->service) {
            return false;
        }
        memcpy(stream->service, colon + 1, size + 1U);
    }
    try_open(stream);
    return true;
}

static void drop(struct stream *stream) {
    (void)close(stream->descriptor);
    stream->descriptor = -1;
    stream->is_connecting = false;
    stream->is_full = false;
    stream->retry_at_ms = posix_now_ms() + STREAM_RETRY_MS;
}

/* Opens, or finishes to open. True where bytes can move. */
static bool is_open(struct stream *stream) {
    if (stream->descriptor < 0 && (int32_t)(posix_now_ms() - stream->retry_at_ms) >= 0) {
        try_open(stream);
    }
    if (stream->descriptor >= 0 && stream->is_connecting) {
        struct pollfd entry = {.fd = stream->descriptor, .events = POLLOUT};
        if (poll(&entry, 1, 0) <= 0) {
            return false;
        }
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(stream->descriptor, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
            drop(stream);
            return false;
        }
        stream->is_connecting = false;
    }
    return stream->descriptor >= 0;
}

/* What read() or write() said, as a port callback says it. `is_end`: whether zero bytes mean the end of the stream. */
static int32_t moved(struct stream *stream, ssize_t count, bool is_end) {
    if (count > 0) {
        return (int32_t)count;
    }
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        return 0;
    }
    if (stream->kind == STREAM_PTY || (count == 0 && !is_end)) {
        return 0; /* a pseudo terminal lives as long as the process */
    }
    drop(stream);
    return STREAM_ERROR_LOST;
}

int32_t stream_read(struct stream *stream, uint8_t *bytes, uint32_t capacity) {
    if (capacity == 0U || !is_open(stream)) {
        return 0;
    }
    return moved(stream, read(stream->descriptor, bytes, capacity), true);
}

int32_t stream_write(struct stream *stream, const uint8_t *bytes, uint32_t size) {
    if (size == 0U || !is_open(stream)) {
        return 0;
    }
    const int32_t written = moved(stream, write(stream->descriptor, bytes, size), false);
    stream->is_full = written >= 0 && (uint32_t)written < size;
    return written;
}

void stream_wait(struct stream *stream, uint32_t timeout_ms) {
    if (stream->descriptor < 0) {
        const int32_t left = (int32_t)(stream->retry_at_ms - posix_now_ms());
        const uint32_t until_retry = left > 0 ? (uint32_t)left : 0U;
        (void)poll(NULL, 0, (int)(until_retry < timeout_ms ? until_retry : timeout_ms));
        return;
    }
    struct pollfd entry = {.fd = stream->descriptor, .events = POLLIN};
    if (stream->is_connecting || stream->is_full) {
        entry.events = POLLIN | POLLOUT;
    }
    (void)poll(&entry, 1, (int)timeout_ms);
}
