# SPDX-License-Identifier: Apache-2.0
"""A file system of a chosen size in a namespace of our own: full when we say so, on any Linux that lets users have namespaces.

A process holds the namespace; commands enter it by `wrapper`, we look into it through the process's root. It is gone when we are.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmote.errors import RigError
from fedmote_hil.faults.matrix import NotRunError

_HOLDER = """
mount -t tmpfs -o "size=$2,mode=0777" tmpfs "$1" || exit 1
echo mounted
while read -r options; do mount -o "remount,$options" "$1" && echo done || echo failed; done
"""


class SmallDisk:
    """Use as a context manager.

    Args:
        directory: where it is mounted, inside the namespace; made.
        size_bytes: of the file system, in whole pages.

    Raises:
        NotRunError: this machine lets us have no namespace.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for tool in ("unshare", "nsenter", "mount"):
            if shutil.which(tool) is None:
                raise NotRunError(f"{tool} is not installed; a small file system needs it")
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "/bin/sh",
                "-c",
                _HOLDER,
                "holder",
                str(directory),
                str(size_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "mounted\n":
            words = self._holder.stderr.read().strip()[-200:]
            self.close()
            raise NotRunError(f"no namespace with a file system of its own is to be had here: {words}")

    @property
    def wrapper(self) -> list[str]:
        """In front of a command that shall see the file system."""
        return ["nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials", "--"]

    @property
    def outside(self) -> Path:
        """Where we see it."""
        return Path(f"/proc/{self._holder.pid}/root{self.directory}")

    def remount(self, options: str) -> None:
        """Change it: `size=BYTES`, `ro`, `rw`.

        Raises:
            RigError: it cannot be.
        """
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.write(options + "\n")
        self._holder.stdin.flush()
        if self._holder.stdout.readline() != "done\n":
            raise RigError(f"{self.directory} cannot be mounted again with {options}")

    @property
    def used_bytes(self) -> int:
        """Bytes that are taken."""
        return shutil.disk_usage(self.outside).used

    def close(self) -> None:
        """It is gone with its content. Harmless twice."""
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()
        self._holder.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
