# SPDX-License-Identifier: Apache-2.0
"""Work in a thread that holds no end back.

`asyncio.to_thread` uses threads that the end of the loop and of the process waits for: a name server that does not answer, or a
large merge, would keep a program from ending for as long as it likes. Here the thread is left alone at the end. So the work must
be such that its loss harms nothing: everything that counts is written by whoever awaits it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

Outcome = TypeVar("Outcome")


def in_background(work: Callable[[], Outcome]) -> asyncio.Future[Outcome]:
    """Start work in a thread of its own; the future has its outcome or its exception."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def hand_over(settle: Callable[[], None]) -> None:
        if not future.done():  # it may have been cancelled
            settle()

    def run() -> None:
        try:
            settle: Callable[[], None] = partial(future.set_result, work())
        except Exception as error:  # whoever awaits it judges it
            settle = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(hand_over, settle)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future
