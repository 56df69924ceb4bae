# SPDX-License-Identifier: Apache-2.0
"""The fleet: who belongs to it, with which key, and what the broker must know about them."""

from fedmote.fleet.registry import Entry, Registry, State

__all__ = ["Entry", "Registry", "State"]
