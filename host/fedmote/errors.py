# SPDX-License-Identifier: Apache-2.0
"""One root error; its children answer the question: who can mend it?

Every error carries data in attributes and a message that says what happened, where, what was expected and what to try.
The command prints the message on one line and ends with the class's exit code: 1 refused, 2 usage or configuration,
3 link, board or state directory, 4 our bug, 5 disk full. Foreign exceptions are translated once, where they enter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fedmote.wire.schema import Status


class FedmoteError(Exception):
    """Root of all errors of fedmote."""

    exit_code = 4


class ConfigError(FedmoteError):
    """Whoever wrote a configuration, an argument or a data file can mend it."""

    exit_code = 2


class ConversionError(FedmoteError):
    """The ML engineer can mend it: a model that cannot be converted as it is."""

    exit_code = 1


class UnsupportedOpError(ConversionError):
    """A node of the model has no int8 form here.

    Attributes:
        node: name of the node in the source model.
        reason: why it is refused.
        hint: the nearest supported form.
    """

    def __init__(self, node: str, reason: str, hint: str) -> None:
        super().__init__(f"{node}: {reason}; {hint}")
        self.node = node
        self.reason = reason
        self.hint = hint


class DoesNotFitError(ConversionError):
    """A model exceeds a budget of a board.

    Attributes:
        board: name of the board.
        what: the budget: "arena", "slot", "flash", "samples".
        needed: bytes needed.
        available: bytes available.
    """

    def __init__(self, board: str, what: str, needed: int, available: int) -> None:
        super().__init__(
            f"board {board}: {what} needs {needed} bytes, {available} are available; "
            f"cut earlier, narrow the model or choose a larger board"
        )
        self.board = board
        self.what = what
        self.needed = needed
        self.available = available


class PackageError(FedmoteError):
    """A package or `.tflite` file is not what it should be: build it again.

    Attributes:
        status: the coded reason, equal to the device's own.
    """

    exit_code = 1

    def __init__(self, message: str, status: Status | None = None) -> None:
        super().__init__(message)
        self.status = status


class WireError(FedmoteError):
    """Bytes that break the protocol. Raised as LocalWireError or RemoteWireError only."""

    exit_code = 3

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name.lower().replace('_', '-')}: {message}")
        self.status = status


class LocalWireError(WireError):
    """Our side tried to send something that the schema forbids: our bug."""

    exit_code = 4


class RemoteWireError(WireError):
    """The peer sent something that the schema forbids."""


class TransportError(FedmoteError):
    """The operator can mend it: broker, serial port, network."""

    exit_code = 3


class LoginError(TransportError):
    """The broker refused the user: waiting does not help, another password does."""


class DeviceError(FedmoteError):
    """A device answered with a status, or its image or emulator failed."""

    exit_code = 3

    def __init__(self, message: str, status: Status | None = None) -> None:
        super().__init__(message)
        self.status = status


class RoundError(FedmoteError):
    """A round could not end as planned: quorum missed, or updates do not match."""

    exit_code = 1


class StoreError(FedmoteError):
    """The operator can mend it: the state directory is full, not writable, in use, or damaged."""

    exit_code = 3


class DiskFullError(StoreError):
    """The operator can mend it: free space, and start again. Nothing that was written is damaged.

    Attributes:
        path: what could not be written.
    """

    exit_code = 5

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: the disk is full; nothing that was written is damaged: free space and start again")
        self.path = path


class RigError(FedmoteError):
    """The test engineer can mend it: boards, probes, tool chains, emulators."""

    exit_code = 3
