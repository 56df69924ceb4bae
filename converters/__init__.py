# SPDX-License-Identifier: Apache-2.0
# Not shipped: it names the tests of this room `converters.tests`, as pytest takes the rooms' tests for one package otherwise.
