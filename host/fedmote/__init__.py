# SPDX-License-Identifier: Apache-2.0
"""fedmote: federated learning for microcontrollers (host side)."""

__version__ = "0.1.0"
