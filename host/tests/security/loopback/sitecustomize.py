# SPDX-License-Identifier: Apache-2.0
"""Runs at the start of every Python process that finds this directory on its path.

It refuses, and notes in the file that FEDMOTE_TEST_OUTBOUND names, each attempt to reach another machine or to ask for
its address; and it turns every logger of the process up to DEBUG, onto standard error.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys

_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"})


def outbound(event: str, arguments: tuple) -> str | None:
    """The host that an event of the interpreter is about, where that is another machine."""
    if event not in _EVENTS:
        return None
    address = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[1]
    host = address[0] if isinstance(address, tuple) and address else address
    # Paths are sockets of the file system, numbers those of the kernel; no host at all is this one.
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and not isinstance(address, tuple):
        return None
    if host is None or isinstance(host, int) or host in ("", b"", "localhost", b"localhost"):
        return None
    text = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    try:
        return None if ipaddress.ip_address(text.partition("%")[0]).is_loopback else text
    except ValueError:
        return text


def refuse(event: str, arguments: tuple) -> None:
    """The audit hook."""
    host = outbound(event, arguments)
    if host is None:
        return
    if path := os.environ.get("FEDMOTE_TEST_OUTBOUND"):
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 (as few imports as can be at an interpreter's start)
            file.write(f"{event} {host} {sys.argv}\n")
    raise PermissionError(f"{event}: {host} is another machine")


if __name__ == "sitecustomize":
    sys.addaudithook(refuse)
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
