# SPDX-License-Identifier: Apache-2.0
"""Arithmetic that hides single participants: noise and its accountant, masks and shares. No I/O, no clock."""
