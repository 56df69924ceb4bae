/* SPDX-License-Identifier: Apache-2.0
 * Generated from protocol/fedmote.cddl by protocol/generate.py; change the schema, not this file. */
#include "fedmote/fedmote_schema.h"

/* clang-format off */

const struct fedmote_field_rule fedmote_field_rules[FEDMOTE_FIELDS_END] = {
    {FEDMOTE_TYPE_NONE, 0U, 0U},
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 1 handle */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 2 offset */
    {FEDMOTE_TYPE_BYTES, 0U, 65535U}, /* 3 data */
    {FEDMOTE_TYPE_UINT, 8U, 65528U}, /* 4 chunk */
    {FEDMOTE_TYPE_UINT, 1U, 4294967295U}, /* 5 mask */
    {FEDMOTE_TYPE_BYTES, 8U, 8U}, /* 6 run */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 7 round */
    {FEDMOTE_TYPE_UINT, 1U, 255U}, /* 8 status */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 9 size */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 10 crc */
    {FEDMOTE_TYPE_UINT, 0U, 65535U}, /* 11 attempt */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 12 num_examples */
    {FEDMOTE_TYPE_TEXT, 1U, 32U}, /* 13 device */
    {FEDMOTE_TYPE_UINT, 1U, 2U}, /* 14 role */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 15 boot */
    {FEDMOTE_TYPE_UINT, 1U, 255U}, /* 16 protocol */
    {FEDMOTE_TYPE_TEXT, 1U, 32U}, /* 17 board */
    {FEDMOTE_TYPE_TEXT, 1U, 64U}, /* 18 sdk */
    {FEDMOTE_TYPE_UINT, 144U, 65535U}, /* 19 max_body */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 20 arena_bytes */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 21 slot_bytes */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 22 num_samples */
    {FEDMOTE_TYPE_BYTES, 32U, 32U}, /* 23 model_hash */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 24 wait_ms */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 25 remaining_ms */
    {FEDMOTE_TYPE_UINT, 1U, 3U}, /* 26 phase */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 27 version */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 28 model_handle */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 29 model_size */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 30 head_handle */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 31 head_size */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 32 head_crc */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 33 seed */
    {FEDMOTE_TYPE_UINT, 0U, 1000000U}, /* 34 alpha_milli */
    {FEDMOTE_TYPE_UINT, 0U, 1000000U}, /* 35 beta_milli */
    {FEDMOTE_TYPE_UINT, 0U, 1000000U}, /* 36 gamma_milli */
    {FEDMOTE_TYPE_UINT, 0U, 1U}, /* 37 gamma_order */
    {FEDMOTE_TYPE_UINT, 0U, 32U}, /* 38 epochs */
    {FEDMOTE_TYPE_UINT, 1U, 1024U}, /* 39 batch */
    {FEDMOTE_TYPE_UINT, 0U, 10000000U}, /* 40 learning_rate_micro */
    {FEDMOTE_TYPE_UINT, 0U, 999999U}, /* 41 momentum_micro */
    {FEDMOTE_TYPE_UINT, 0U, 1000U}, /* 42 gain_milli */
    {FEDMOTE_TYPE_UINT, 0U, 1U}, /* 43 is_sending_samples */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 44 max_send */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 45 discarded */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 46 trained */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 47 sent */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 48 loss_micro */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 49 loss_after_micro */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 50 arena_used_bytes */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 51 count */
    {FEDMOTE_TYPE_UINT, 1U, 4294967295U}, /* 52 input_bytes */
    {FEDMOTE_TYPE_TEXT, 0U, 64U}, /* 53 reason */
    {FEDMOTE_TYPE_UINT, 0U, 1U}, /* 54 is_online */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 55 frame_errors */
    {FEDMOTE_TYPE_UINT, 0U, 1U}, /* 56 loss */
    {FEDMOTE_TYPE_UINT, 0U, 1000000U}, /* 57 weight_decay_micro */
    {FEDMOTE_TYPE_UINT, 1U, 4294967295U}, /* 58 clip_norm_micro */
    {FEDMOTE_TYPE_UINT, 1U, 255U}, /* 59 trained_layers */
    {FEDMOTE_TYPE_UINT, 0U, 1U}, /* 60 is_bias_only */
    {FEDMOTE_TYPE_UINT, 1U, 255U}, /* 61 difference_format */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 62 difference_handle */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 63 difference_size */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 64 serial */
    {FEDMOTE_TYPE_UINT, 0U, 4294967295U}, /* 65 operators */
    {FEDMOTE_TYPE_BYTES, 64U, 64U}, /* 66 signature */
    {FEDMOTE_TYPE_UINT, 1U, 3U}, /* 67 mask_step */
    {FEDMOTE_TYPE_BYTES, 28U, 28U}, /* 68 masking */
    {FEDMOTE_TYPE_BYTES, 32U, 32U}, /* 69 secret */
};

const struct fedmote_kind_rule fedmote_kind_rules[FEDMOTE_KINDS_END] = {
    {{0x00000000U, 0x00000000U, 0x00000000U}, {0x00000000U, 0x00000000U, 0x00000000U}}, /* 0 none */
    {{0x00FFE0C0U, 0x20800000U, 0x00000000U}, {0x000FE000U, 0x00000000U, 0x00000000U}}, /* 1 hello */
    {{0x01000000U, 0x00200000U, 0x00000000U}, {0x01000000U, 0x00000000U, 0x00000000U}}, /* 2 wait */
    {{0xFE8008C0U, 0xDF001FFFU, 0x00000017U}, {0x3E8000C0U, 0x000003C2U, 0x00000000U}}, /* 3 plan */
    {{0x00000036U, 0x00000000U, 0x00000000U}, {0x00000036U, 0x00000000U, 0x00000000U}}, /* 4 get */
    {{0x0000000EU, 0x00000000U, 0x00000000U}, {0x0000000EU, 0x00000000U, 0x00000000U}}, /* 5 data */
    {{0x08001EC2U, 0x0007E000U, 0x00000008U}, {0x080016C2U, 0x00000000U, 0x00000000U}}, /* 6 report */
    {{0x000006C2U, 0x00180000U, 0x00000000U}, {0x000006C2U, 0x00180000U, 0x00000000U}}, /* 7 samples */
    {{0x000000C2U, 0x00000000U, 0x00000000U}, {0x000000C2U, 0x00000000U, 0x00000000U}}, /* 8 ack */
    {{0x000001C2U, 0x00200000U, 0x00000000U}, {0x00000100U, 0x00000000U, 0x00000000U}}, /* 9 refuse */
    {{0x00008000U, 0x00400000U, 0x00000000U}, {0x00008000U, 0x00400000U, 0x00000000U}}, /* 10 state */
    {{0x00000000U, 0x00000000U, 0x00000020U}, {0x00000000U, 0x00000000U, 0x00000020U}}, /* 11 rekey */
};

const char *const fedmote_kind_names[FEDMOTE_KINDS_END] = {
    "",
    "hello",
    "wait",
    "plan",
    "get",
    "data",
    "report",
    "samples",
    "ack",
    "refuse",
    "state",
    "rekey",
};
