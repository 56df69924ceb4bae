# SPDX-License-Identifier: Apache-2.0
"""What the product's SQLite files have in common: transactions, reading, upgrades, and SQLite's errors as ours.

Tables have a version, which `user_version` of the file says. A new version adds a script to the list; old scripts are never
edited.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from fedmote.errors import DiskFullError, StoreError


class Database:
    """An open SQLite file.

    Attributes:
        path: the file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it is durable afterwards, or nothing was written."""
        with database_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite ends a transaction itself when the disk is full; a second ROLLBACK would be an error.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _write(self, statement: str, *values: object) -> None:
        self._connection.execute(statement, values)

    def _one(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        return next(iter(self._all(statement, *values)), None)

    def _all(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with database_errors(self.path):
            return self._connection.execute(statement, values).fetchall()


def upgrade(connection: sqlite3.Connection, path: Path, what: str, scripts: Sequence[str]) -> None:
    """Bring the tables of a file to the newest version.

    Args:
        connection: to the file.
        path: of it, for messages.
        what: it is, for messages: "ledger".
        scripts: that of version n at index n - 1.

    Raises:
        StoreError: its tables are newer than this program.
    """
    version = tables_version(connection, path, what, scripts)
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def tables_version(connection: sqlite3.Connection, path: Path, what: str, scripts: Sequence[str]) -> int:
    """The version of the tables, 0 where there are none; StoreError where they are newer than this program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(scripts):
        raise StoreError(f"{path}: {what} of version {version}, this program knows {len(scripts)}; upgrade fedmote")
    return int(version)


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours.

    Raises:
        DiskFullError: the disk is full.
        StoreError: an entry breaks a rule of the tables, or the file cannot be read or written.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise StoreError(f"{path}: the file refuses an entry ({error})") from error
    except sqlite3.Error as error:
        if _is_full(error, path):
            raise DiskFullError(path) from error
        raise StoreError(f"{path}: {error}") from error


def _is_full(error: sqlite3.Error, path: Path) -> bool:
    """SQLite names a full disk as such in most places, and as a failed write of its shared memory in others."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return True
    with contextlib.suppress(OSError):
        return name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and os.statvfs(path.parent).f_bavail == 0
    return False
