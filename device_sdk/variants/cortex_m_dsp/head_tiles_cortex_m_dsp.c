/* SPDX-License-Identifier: Apache-2.0
 *
 * Loads and stores of eight registers at once: 14 instructions for a row where the compiler, which forms none of them
 * from C, needs 22 and 29. Sums are formed in the portable order, fused, so that the numbers are those of a compiler
 * that contracts. A core without FPU trains in integers and does not link this file.
 */
#if defined(__ARM_FP)

#include "head_tiles.h"

void fedmote_tile_multiply(const float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], float *sums,
                           uint32_t rows) {
    __asm volatile("vldmia %[tile], {s8-s15}\n"
                   "1: vldmia %[weights], {s0-s7}\n"
                   "vldr s16, [%[sums]]\n"
                   "vfma.f32 s16, s0, s8\n"
                   "vfma.f32 s16, s1, s9\n"
                   "vfma.f32 s16, s2, s10\n"
                   "vfma.f32 s16, s3, s11\n"
                   "vfma.f32 s16, s4, s12\n"
                   "vfma.f32 s16, s5, s13\n"
                   "vfma.f32 s16, s6, s14\n"
                   "vfma.f32 s16, s7, s15\n"
                   "vstmia %[sums]!, {s16}\n"
                   "add %[weights], %[weights], %[stride]\n"
                   "subs %[rows], %[rows], #1\n"
                   "bne 1b\n"
                   : [weights] "+r"(weights), [sums] "+r"(sums), [rows] "+r"(rows)
                   : [tile] "r"(tile), [stride] "r"(4U * stride)
                   : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13", "s14",
                     "s15", "s16", "cc", "memory");
}

void fedmote_tile_add(float *weights, uint32_t stride, const float tile[FEDMOTE_TILE], const float *shares,
                      uint32_t rows) {
    __asm volatile("vldmia %[tile], {s8-s15}\n"
                   "1: vldmia %[shares]!, {s16}\n"
                   "vldmia %[weights], {s0-s7}\n"
                   "vfma.f32 s0, s8, s16\n"
                   "vfma.f32 s1, s9, s16\n"
                   "vfma.f32 s2, s10, s16\n"
                   "vfma.f32 s3, s11, s16\n"
                   "vfma.f32 s4, s12, s16\n"
                   "vfma.f32 s5, s13, s16\n"
                   "vfma.f32 s6, s14, s16\n"
                   "vfma.f32 s7, s15, s16\n"
                   "vstmia %[weights], {s0-s7}\n"
                   "add %[weights], %[weights], %[stride]\n"
                   "subs %[rows], %[rows], #1\n"
                   "bne 1b\n"
                   : [weights] "+r"(weights), [shares] "+r"(shares), [rows] "+r"(rows)
                   : [tile] "r"(tile), [stride] "r"(4U * stride)
                   : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13", "s14",
                     "s15", "s16", "cc", "memory");
}

#else
typedef int head_tiles_need_an_fpu; /* no translation unit is empty */
#endif
