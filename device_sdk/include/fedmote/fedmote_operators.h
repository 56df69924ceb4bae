/* SPDX-License-Identifier: Apache-2.0
 *
 * The operators that an encoder may consist of. A program names those that it wants in a table that ends with NULL;
 * whatever no table names is not linked, and a package that needs it is refused before anything of it is used:
 *
 *     static const struct fedmote_operator *const operators[] = {&fedmote_operator_conv_2d, &fedmote_operator_mean,
 * NULL};
 *
 * `fedmote package info` says which operators a package needs.
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
extern const struct fedmote_operator fedmote_operator_relu;

/* All of them, for the initializer of a table; add the NULL. */
#define FEDMOTE_ALL_OPERATORS                                                                                          \
    &fedmote_operator_conv_2d, &fedmote_operator_depthwise_conv_2d, &fedmote_operator_fully_connected,                 \
        &fedmote_operator_add, &fedmote_operator_average_pool_2d, &fedmote_operator_max_pool_2d,                       \
        &fedmote_operator_mean, &fedmote_operator_pad, &fedmote_operator_relu

#ifdef __cplusplus
}
#endif

#endif
