/* SPDX-License-Identifier: Apache-2.0 */
#include "int4.h"

int32_t fedmote_int4_dot(const int8_t *x, const uint8_t *w, uint32_t first, uint32_t n) {
    int32_t sum = 0;
    w += first / 2U;
    if (first % 2U != 0U && n > 0U) {
        sum += *x++ * fedmote_int4_high(*w++);
        n--;
    }
    for (const int8_t *end = x + (n & ~UINT32_C(1)); x != end; x += 2, w++) {
        sum += x[0] * fedmote_int4_low(*w) + x[1] * fedmote_int4_high(*w);
    }
    return n % 2U != 0U ? sum + *x * fedmote_int4_low(*w) : sum;
}

int32_t fedmote_int4_sum(const uint8_t *w, uint32_t first, uint32_t n) {
    int32_t sum = 0;
    for (uint32_t i = first; i < first + n; i++) {
        sum += fedmote_int4_at(w, i);
    }
    return sum;
}
