# SPDX-License-Identifier: Apache-2.0
"""The state directory of a run: ledger, checkpoints, blobs, and a lock.

    ledger.sqlite  checkpoints/checkpoint-000007.safetensors  blobs/<content>  lock  earlier/<run>/...

One coordinator at a time writes to it: the lock is the operating system's, so it ends with its process, however that ends.
A fresh start removes nothing: the earlier run moves to `earlier/`.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from fedmote.durable_files import sync_directory
from fedmote.errors import StoreError
from fedmote.store.blobs import Blobs
from fedmote.store.checkpoints import Checkpoints
from fedmote.store.durable import store_errors
from fedmote.store.ledger import Ledger

LEDGER = "ledger.sqlite"
_CONTENTS = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", "checkpoints", "blobs")


class State:
    """An open state directory. Use `State.open`, and `close` or a `with` block.

    Attributes:
        directory: where everything is.
        ledger, checkpoints, blobs: the three stores.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self.ledger = Ledger.open(directory / LEDGER)
        self.checkpoints = Checkpoints(directory / "checkpoints")
        self.blobs = Blobs(directory / "blobs")

    @classmethod
    def open(cls, directory: Path, is_fresh: bool = False) -> State:
        """Open a state directory for writing; make it, but not the directories above it, where there is none.

        Args:
            directory: of the run.
            is_fresh: set an earlier run aside instead of going on with it.

        Raises:
            StoreError: another coordinator has it, it cannot be written, or it belongs to somebody else.
        """
        with store_errors(directory):
            if not directory.parent.is_dir():  # a medium that is not mounted must not look like a run that never began
                raise StoreError(f"{directory}: {directory.parent} is not there; mount or make it, or choose another directory")
            directory.mkdir(mode=0o700, exist_ok=True)  # updates tell about the data they were trained on
            for path in (directory, *(directory / name for name in ("lock", *_CONTENTS))):
                _refuse_unwritable(path)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(f"{directory}: another coordinator works here; stop it, or choose another directory") from error
            if is_fresh:
                set_aside(directory)
            return cls(directory, lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Close the stores and give the lock back."""
        self.ledger.close()
        os.close(self._lock)

    def __enter__(self) -> State:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def set_aside(directory: Path) -> Path | None:
    """Move the run in a state directory to `earlier/`; returns where it went, None where there was none."""
    if not (directory / LEDGER).exists():
        return None
    with Ledger.open(directory / LEDGER) as ledger:  # also folds the write-ahead log in
        run = ledger.run()
    name = run.name.hex() if run is not None else "unnamed"
    with store_errors(directory):
        target = directory / "earlier" / name
        suffix = 1
        while target.exists():
            suffix += 1
            target = directory / "earlier" / f"{name}-{suffix}"
        target.mkdir(parents=True)
        # The ledger goes last: a move that is interrupted is found, and done again, by the next fresh start.
        for content in reversed(_CONTENTS):
            if (directory / content).exists():
                (directory / content).rename(target / content)
        sync_directory(directory)
    return target


def _refuse_unwritable(path: Path) -> None:
    """Also where we are root, who can write everything and would lock the owner out of what it made."""
    if not path.exists():
        return
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path}: belongs to user {found.st_uid}, this is user {os.geteuid()}; start as its owner, or give it over"
        )
    if not found.st_mode & stat.S_IWUSR or not os.access(path, os.W_OK):
        raise StoreError(f"{path}: cannot be written; make it writable, or choose another directory")
