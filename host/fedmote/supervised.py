# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlive us, and free ports for them to listen at.

A child runs under a few lines of shell that hold the reading end of a pipe: the `stdin` of the process that `start` returns.
A line on the pipe asks the child to end (SIGTERM). When the pipe closes, because we close it or because we died in whatever way,
the child is ended for good. Unlike the kernel's parent-death signal this does not depend on which thread started the child, and
no list of process ids has to be kept.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# stdin becomes descriptor 3, which only the watcher reads: it ends when the last writer is gone.
_SUPERVISOR = """
exec 3<&0 </dev/null
grace=$1
shift
"$@" 3<&- &
child=$!
{
    while read -r _ <&3; do kill "$child"; done
    if [ "$grace" -gt 0 ]; then kill "$child"; sleep "$grace" 3<&-; fi
    kill -9 "$child"
} 2>/dev/null &
watcher=$!
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""


def start(
    command: Sequence[str | Path],
    stdout: IO[bytes],
    stderr: IO[bytes],
    *,
    grace_s: int = 0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child.

    Args:
        command: program and arguments.
        stdout: where its output goes.
        stderr: where its errors go.
        grace_s: after the pipe has closed, SIGTERM and so many seconds before SIGKILL; 0: SIGKILL at once, as a power cut.
        environment: of the child; None for ours.

    Returns:
        The process of the shell: its exit code is the child's, 128 + n after signal n.

    Raises:
        OSError: there is no shell to start it.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", _SUPERVISOR, "fedmote", str(grace_s), *command],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=None if environment is None else dict(environment),
        start_new_session=True,  # an interrupt at the terminal is ours to handle
    )


class Group:
    """Hundreds of children under one guard: a child costs one process, and none outlives us. Use as a context manager.

    The guard leads their process group and holds the reading end of a pipe: when that closes, because we close it or because we
    died in whatever way, it ends the whole group at once.
    """

    def __init__(self) -> None:
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", "read -r _; kill -9 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self._children: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: Sequence[str | Path], stdout: IO[bytes], stderr: IO[bytes], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a child directly: its process id is that of `command`; environment None for ours.

        Raises:
            OSError: it cannot be started.
        """
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if environment is None else dict(environment),
            process_group=self._guard.pid,
        )
        self._children.append(child)
        return child

    def close(self) -> None:
        """End all children at once, also those that are stopped, and wait until they are gone. Harmless twice."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait()
        for child in self._children:
            child.wait()
        self._children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def free_tcp_port() -> int:
    """A loopback port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
