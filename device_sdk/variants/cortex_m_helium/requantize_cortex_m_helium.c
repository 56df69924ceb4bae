/* SPDX-License-Identifier: Apache-2.0
 *
 * The two roundings, four sums at a time. VQRDMULH is step 1 as it stands. VRSHL is step 2 but for ties of negative
 * numbers, which it rounds up: taking 1 from negative products first sends them away from zero. Where the clamp
 * begins at the zero point or above, as after any ReLU, negative products end there however they are rounded.
 */
#include <arm_mve.h>
#include <stddef.h>

#include "helium.h"

/* Sums of four channels, not yet with bias, to outputs. Constants at each lane's own place. */
static inline int32x4_t scaled(int32x4_t sums, int32x4_t bias, int32x4_t multiplier, int32x4_t shift) {
    const int32x4_t left = vmaxq_s32(shift, vdupq_n_s32(0)), right = vminq_s32(shift, vdupq_n_s32(0));
    const int32x4_t product = vqrdmulhq_s32(vshlq_s32(vaddq_s32(sums, bias), left), multiplier);
    const int32x4_t nudge = vshrq_n_s32(vandq_s32(product, right), 31);
    return vrshlq_s32(vaddq_s32(product, nudge), right);
}

struct fedmote_helium_scaling fedmote_helium_scaling_of(const struct fedmote_scaling *scaling, uint32_t channels) {
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0U, 1), FEDMOTE_SCALING_BYTES / 4U);
    const int32_t *shifts = (const int32_t *)(const void *)scaling->channels + 2;
    int32x4_t highest = vdupq_n_s32(INT32_MIN);
    for (uint32_t c = 0; c < channels; c += 4U) {
        const mve_pred16_t lanes = vctp32q(channels - c);
        const int32x4_t shift = vldrwq_gather_shifted_offset_z_s32(shifts + 3U * c, places, lanes);
        highest = vmaxq_m_s32(highest, highest, shift, lanes);
    }
    const struct fedmote_helium_scaling result = {*scaling, vmaxvq_s32(INT32_MIN, highest) < 0,
                                                  scaling->low < scaling->zero_point};
    return result;
}

/* What the loop below reads: its offsets are in the assembly. */
struct ending {
    const int32_t *sums;     /* 0 */
    const uint8_t *channels; /* 4 */
    uint32_t count;          /* 8 */
    int8_t *out;             /* 12 */
    uint32_t step;           /* 16 */
    uint32_t skip;           /* 20: bytes of the positions' code that is not run */
    int32_t zero_point;      /* 24 */
    int32_t low, high;       /* 28, 32 */
    uint32_t positions;      /* 36 */
};

typedef char positions_are_7[FEDMOTE_HELIUM_POSITIONS == 7U && offsetof(struct ending, positions) == 36U ? 1 : -1];

/* One position of four channels. q0 sums and outputs, q1 bias, q2 multiplier, q3 shift, q4 and q5 the clamp, q6
 * addresses of the sums, q7 of the constants. 32 or 40 bytes. */
#define POSITION(number, nudge)                                                                                        \
    "vldrw.u32 q0, [q6, #4 * " number "]\n"                                                                            \
    "vadd.i32 q0, q0, q1\n"                                                                                            \
    "vqrdmulh.s32 q0, q0, q2\n" nudge "vrshl.s32 q0, q0, q3\n"                                                         \
    "vadd.i32 q0, q0, r11\n"                                                                                           \
    "vmax.s32 q0, q0, q4\n"                                                                                            \
    "vmin.s32 q0, q0, q5\n"                                                                                            \
    "vstrb.32 q0, [r" number "], #4\n"
#define NUDGE                                                                                                          \
    "vpt.s32 lt, q0, zr\n"                                                                                             \
    "vsubt.i32 q0, q0, r8\n"
#define POSITION_BYTES 32U
#define NUDGED_POSITION_BYTES 40U

/* All shifts to the right. Positions from the last to the first, entered where there are fewer than seven. */
#define FINISH(name, nudge)                                                                                            \
    __attribute__((naked)) static void name(const struct ending *ending) {                                             \
        (void)ending;                                                                                                  \
        __asm volatile("push {r4-r11, lr}\n"                                                                           \
                       "vpush {d8-d15}\n"                                                                              \
                       "mov r10, r0\n"                                                                                 \
                       "mov r0, #0\n"                                                                                  \
                       "vidup.u32 q6, r0, #1\n"                                                                        \
                       "ldr r1, [r10, #4]\n"                                                                           \
                       "sub r1, r1, #48\n"                                                                             \
                       "mov r2, #12\n"                                                                                 \
                       "vmul.i32 q7, q6, r2\n"                                                                         \
                       "vadd.i32 q7, q7, r1\n"                                                                         \
                       "ldr r1, [r10]\n"                                                                               \
                       "ldr r2, [r10, #36]\n"                                                                          \
                       "lsl r9, r2, #4\n"                                                                              \
                       "lsl r2, r2, #2\n"                                                                              \
                       "vmul.i32 q6, q6, r2\n"                                                                         \
                       "vadd.i32 q6, q6, r1\n"                                                                         \
                       "ldr r11, [r10, #24]\n"                                                                         \
                       "ldrd r0, r1, [r10, #28]\n"                                                                     \
                       "vdup.32 q4, r0\n"                                                                              \
                       "vdup.32 q5, r1\n"                                                                              \
                       "adr r12, 2f\n"                                                                                 \
                       "ldr r0, [r10, #20]\n"                                                                          \
                       "add r12, r12, r0\n"                                                                            \
                       "orr r12, r12, #1\n"                                                                            \
                       "mov r8, #1\n"                                                                                  \
                       "ldrd r0, r7, [r10, #12]\n"                                                                     \
                       "add r1, r0, r7\n"                                                                              \
                       "add r2, r1, r7\n"                                                                              \
                       "add r3, r2, r7\n"                                                                              \
                       "add r4, r3, r7\n"                                                                              \
                       "add r5, r4, r7\n"                                                                              \
                       "add r6, r5, r7\n"                                                                              \
                       "ldr r7, [r10, #8]\n"                                                                           \
                       "dlstp.32 lr, r7\n"                                                                             \
                       "1: vldrw.u32 q1, [q7, #48]!\n"                                                                 \
                       "vldrw.u32 q2, [q7, #4]\n"                                                                      \
                       "vldrw.u32 q3, [q7, #8]\n"                                                                      \
                       "bx r12\n"                                                                                      \
                       ".align 2\n"                                                                                    \
                       "2:\n" POSITION("6", nudge) POSITION("5", nudge) POSITION("4", nudge) POSITION("3", nudge)      \
                           POSITION("2", nudge) POSITION("1", nudge) POSITION("0", nudge) "vadd.i32 q6, q6, r9\n"      \
                                                                                          "letp lr, 1b\n"              \
                                                                                          "vpop {d8-d15}\n"            \
                                                                                          "pop {r4-r11, pc}\n");       \
    }

FINISH(finish_right, "")
FINISH(finish_right_nudged, NUDGE)

/* Any shifts. */
static void finish_any(const struct ending *ending) {
    const uint32x4_t lane = vidupq_n_u32(0U, 1);
    const uint32x4_t of_channels = vmulq_n_u32(lane, FEDMOTE_SCALING_BYTES / 4U);
    const uint32x4_t of_sums = vmulq_n_u32(lane, ending->positions);
    const int32x4_t low = vdupq_n_s32(ending->low), high = vdupq_n_s32(ending->high);
    const int32_t *constants = (const int32_t *)(const void *)ending->channels;
    for (uint32_t c = 0; c < ending->count; c += 4U, constants += FEDMOTE_SCALING_BYTES) {
        const mve_pred16_t lanes = vctp32q(ending->count - c);
        const int32x4_t bias = vldrwq_gather_shifted_offset_z_s32(constants, of_channels, lanes);
        const int32x4_t multiplier = vldrwq_gather_shifted_offset_z_s32(constants + 1, of_channels, lanes);
        const int32x4_t shift = vldrwq_gather_shifted_offset_z_s32(constants + 2, of_channels, lanes);
        for (uint32_t p = 0; p < ending->positions; p++) {
            const int32_t *sums = ending->sums + ending->positions * c + p;
            const int32x4_t sum = vldrwq_gather_shifted_offset_z_s32(sums, of_sums, lanes);
            const int32x4_t output = vaddq_n_s32(scaled(sum, bias, multiplier, shift), ending->zero_point);
            vstrbq_p_s32(ending->out + p * ending->step + c, vminq_s32(vmaxq_s32(output, low), high), lanes);
        }
    }
}

void fedmote_helium_finish(int8_t *out, uint32_t step, const struct fedmote_helium_scaling *scaling, uint32_t first,
                           const int32_t *sums, uint32_t count, uint32_t positions) {
    const uint32_t position_bytes = scaling->is_nudged ? NUDGED_POSITION_BYTES : POSITION_BYTES;
    const struct ending ending = {sums,
                                  scaling->scaling.channels + FEDMOTE_SCALING_BYTES * first,
                                  count,
                                  out,
                                  step,
                                  (FEDMOTE_HELIUM_POSITIONS - positions) * position_bytes,
                                  scaling->scaling.zero_point,
                                  scaling->scaling.low,
                                  scaling->scaling.high,
                                  positions};
    if (!scaling->is_right) {
        finish_any(&ending);
    } else if (scaling->is_nudged) {
        finish_right_nudged(&ending);
    } else {
        finish_right(&ending);
    }
}

void fedmote_scale(int8_t *out, const struct fedmote_scaling *scaling, uint32_t first, const int32_t *sums,
                   uint32_t count) {
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0U, 1), FEDMOTE_SCALING_BYTES / 4U);
    const int32_t *constants = (const int32_t *)(const void *)(scaling->channels + FEDMOTE_SCALING_BYTES * first);
    for (uint32_t c = 0; c < count; c += 4U, constants += FEDMOTE_SCALING_BYTES) {
        const mve_pred16_t lanes = vctp32q(count - c);
        const int32x4_t bias = vldrwq_gather_shifted_offset_z_s32(constants, places, lanes);
        const int32x4_t multiplier = vldrwq_gather_shifted_offset_z_s32(constants + 1, places, lanes);
        const int32x4_t shift = vldrwq_gather_shifted_offset_z_s32(constants + 2, places, lanes);
        const int32x4_t output =
            vaddq_n_s32(scaled(vldrwq_z_s32(sums + c, lanes), bias, multiplier, shift), scaling->zero_point);
        const int32x4_t clamped = vminq_s32(vmaxq_s32(output, vdupq_n_s32(scaling->low)), vdupq_n_s32(scaling->high));
        vstrbq_p_s32(out + c, clamped, lanes);
    }
}
