# SPDX-License-Identifier: Apache-2.0
"""A gate in a TCP stream: it closes by itself when a device says a word, so that a test can act at that moment."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_TURN_S = 0.05


class Gate:
    """Carries connections to a broker until a device sends `word`; that and all that follows in both directions is lost.

    Connections that are made after open() pass.

    Attributes:
        url: where devices connect to.
        is_closed: set when the word has come.
    """

    def __init__(self, broker_url: str, word: bytes) -> None:
        parts = urlsplit(broker_url)
        self._broker = (parts.hostname or "127.0.0.1", parts.port or 1883)
        self._word: bytes | None = word
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_closed = threading.Event()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def open(self) -> None:
        """Let new connections pass, whatever is said on them."""
        self._word = None

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(_TURN_S)
        while not self._is_over.is_set():
            try:
                device, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._threads.append(threading.Thread(target=self._carry, args=(device,)))
            self._threads[-1].start()

    def _carry(self, device: socket.socket) -> None:
        """One connection, to its end; one that has lost its bytes stays until the device ends it."""
        is_lost, said = False, b""
        with device, socket.create_connection(self._broker) as broker, selectors.DefaultSelector() as selector:
            for one, other in ((device, broker), (broker, device)):
                selector.register(one, selectors.EVENT_READ, other)
            while not self._is_over.is_set():
                for key, _ in selector.select(_TURN_S):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    try:
                        data = source.recv(65536)
                        if not data:
                            return
                        if source is device and self._word is not None:
                            said = said[-64:] + data
                            is_lost = is_lost or self._word in said
                        if not is_lost:
                            key.data.sendall(data)
                    except OSError:  # killed
                        return
                if is_lost:
                    self.is_closed.set()
