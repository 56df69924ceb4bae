/* SPDX-License-Identifier: Apache-2.0
 *
 * The operators that an encoder may consist of. A program names those that it wants in a table that ends with NULL;
 * whatever no table names is not linked, and a package that needs it is refused before anything of it is used:
 *
 *     static const struct fedmote_operator *const operators[] = {&fedmote_operator_conv_2d, &fedmote_operator_mean,
 * NULL};
 *
 * `fedmote package show` says which operators a package needs.
 */
#ifndef FEDMOTE_OPERATORS_H
#define FEDMOTE_OPERATORS_H

#ifdef __cplusplus
extern "C" {
#endif

struct fedmote_operator;
extern const struct fedmote_operator fedmote_operator_conv_2d;
extern const struct fedmote_operator fedmote_operator_depthwise_conv_2d;
extern const struct fedmote_operator fedmote_operator_fully_connected;
extern const struct fedmote_operator fedmote_operator_add;
extern const struct fedmote_operator fedmote_operator_average_pool_2d;
extern const struct fedmote_operator fedmote_operator_max_pool_2d;
extern const struct fedmote_operator fedmote_operator_mean;
extern const struct fedmote_operator fedmote_operator_pad;
extern const struct fedmote_operator fedmote_operator_table;
extern const struct fedmote_operator fedmote_operator_mul;
extern const struct fedmote_operator fedmote_operator_softmax;
extern const struct fedmote_operator fedmote_operator_strided_copy;
extern const struct fedmote_operator fedmote_operator_conv_2d_int4;
extern const struct fedmote_operator fedmote_operator_depthwise_conv_2d_int4;
extern const struct fedmote_operator fedmote_operator_fully_connected_int4;

/* All of them, for the initializer of a table; add the NULL. */
#define FEDMOTE_ALL_OPERATORS                                                                                          \
    &fedmote_operator_conv_2d, &fedmote_operator_depthwise_conv_2d, &fedmote_operator_fully_connected,                 \
        &fedmote_operator_add, &fedmote_operator_average_pool_2d, &fedmote_operator_max_pool_2d,                       \
        &fedmote_operator_mean, &fedmote_operator_pad, &fedmote_operator_table, &fedmote_operator_mul,                 \
        &fedmote_operator_softmax, &fedmote_operator_strided_copy, &fedmote_operator_conv_2d_int4,                     \
        &fedmote_operator_depthwise_conv_2d_int4, &fedmote_operator_fully_connected_int4

#ifdef __cplusplus
}
#endif

#endif
