/* SPDX-License-Identifier: Apache-2.0
 *
 * memcpy() for boards on which unaligned accesses trap though their core could do them: the one of the C library takes
 * the core at its word.
 */
#include <stddef.h>
#include <stdint.h>

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t size);

/* Not to be recognized as what it is: the compiler would call memcpy(). */
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memcpy(void *restrict to, const void *restrict from,
                                                                           size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((((uintptr_t)out ^ (uintptr_t)in) & 3U) == 0U) {
        for (; size > 0U && ((uintptr_t)out & 3U) != 0U; size--) {
            *out++ = *in++;
        }
        for (; size >= 4U; size -= 4U, out += 4, in += 4) {
            *(word *)(void *)out = *(const word *)(const void *)in;
        }
    }
    for (; size > 0U; size--) {
        *out++ = *in++;
    }
    return to;
}
