# SPDX-License-Identifier: Apache-2.0
"""Transports: messages between participants and the coordinator, and between devices and their partners.

Everything here runs in one asyncio loop and one thread. A transport may lose messages and says so; the protocol's own
repetition mends it. What it must not do is to block, to grow without bound, or to invent messages.
"""

from fedmote.transport.base import Received, Transport

__all__ = ["Received", "Transport"]
