# SPDX-License-Identifier: Apache-2.0
"""Proof of the C sources of the device SDK."""
