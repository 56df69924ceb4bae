/* SPDX-License-Identifier: Apache-2.0
 *
 * The device as a process: byte streams, a file in the place of flash. A stream that breaks is opened
 * again every STREAM_RETRY_MS, for ever.
 */
#ifndef FEDMOTE_POSIX_H
#define FEDMOTE_POSIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STREAM_RETRY_MS 500U
#define STREAM_ERROR_LOST (-140) /* told once per loss: the link starts afresh */
#define FLASH_ERROR_ARGUMENT (-141)
#define CACHE_ERROR_ARGUMENT (-142)

/* clock.c */
uint32_t posix_now_ms(void);
uint32_t posix_random(void);

/* stream.c */
enum stream_kind {
    STREAM_TCP,    /* client of host:service */
    STREAM_SERIAL, /* a path, raw, 8 bits, 115200 baud where that means anything */
    STREAM_PTY     /* a new pseudo terminal; `target` then names its other end */
};

struct stream {
    enum stream_kind kind;
    char target[256]; /* "host" of TCP, path of serial and pty */
    char service[32]; /* TCP */
    int descriptor;   /* -1 while closed */
    bool is_connecting;
    bool is_full; /* the last write did not take everything: wait for room, too */
    uint32_t retry_at_ms;
};

/* Prepares the stream and tries to open it once. TCP and serial targets may be absent for now. False: `target` cannot
 * be understood, or no pseudo terminal is to be had. */
bool stream_init(struct stream *stream, enum stream_kind kind, const char *target);
/* Both as in struct fedmote_port. */
int32_t stream_read(struct stream *stream, uint8_t *bytes, uint32_t capacity);
int32_t stream_write(struct stream *stream, const uint8_t *bytes, uint32_t size);
/* Waits until bytes can move or a closed stream is worth another try, at most timeout_ms. */
void stream_wait(struct stream *stream, uint32_t timeout_ms);

/* files.c: maps a file read-only. False: it cannot be read; `errno` tells. An empty file maps as size 0. */
struct file_map {
    const uint8_t *bytes;
    size_t size;
};
bool file_map_open(struct file_map *map, const char *path);

/* flash.c: two package slots and the two regions of a journal, in memory, or in a file that keeps them over restarts
 * and kills (the page cache outlives the process; a power cut of the whole machine is not guarded against). */
struct flash {
    uint8_t *bytes; /* slot 0, slot 1, region 0, region 1 */
    uint32_t slot_bytes, journal_bytes;
};
/* The sizes are set. `path` NULL: memory. A file is made where there is none. False: `errno` tells; EINVAL for a file
 * of another size. */
bool flash_open(struct flash *flash, const char *path);
/* Everything that was written is on the disk when this returns. False: `errno` tells. */
bool flash_sync(const struct flash *flash);
/* As in struct fedmote_port. */
const uint8_t *flash_slot_base(const struct flash *flash, uint32_t slot);
int32_t flash_slot_erase(struct flash *flash, uint32_t slot);
int32_t flash_slot_write(struct flash *flash, uint32_t slot, uint32_t offset, const uint8_t *bytes, uint32_t size);
const uint8_t *flash_journal_base(const struct flash *flash, uint32_t region);
int32_t flash_journal_erase(struct flash *flash, uint32_t region);
int32_t flash_journal_write(struct flash *flash, uint32_t region, uint32_t offset, const uint8_t *bytes, uint32_t size);

/* cache.c: the region for embeddings. It belongs to a round, so it is memory and no file. */
struct cache {
    uint8_t *bytes;
    uint32_t size;
};
/* False: there is not so much memory. */
bool cache_open(struct cache *cache, uint32_t size);
int32_t cache_erase(struct cache *cache);
int32_t cache_write(struct cache *cache, uint32_t offset, const uint8_t *bytes, uint32_t size);

#endif
