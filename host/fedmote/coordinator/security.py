# SPDX-License-Identifier: Apache-2.0
"""The coordinator's keys, and what it hears of them: withdrawn ones, second boards, refused messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedmote.package.signature import SigningKey, Statement
from fedmote.wire.schema import Channel, Status
from fedmote.wire.seal import EpochEnd, Keys, Seals

# Keys are looked at this often: a revocation takes hold within it. Refusals are written as seldom, whatever an attacker sends.
GUARD_S = 1.0


class WatchedKeys(Keys, Protocol):
    """Keys that may be withdrawn while the coordinator runs."""

    def refresh(self) -> frozenset[str]:
        """Look for changes; ids of participants that were added, revoked, or got another key since the last call."""


@dataclass(frozen=True)
class PackageSigner:
    """What plans say of the packages that the operator signs.

    Attributes:
        key: the operator's.
        next_serial: gives a number (32 bits) that is higher than all that it gave before, also before a restart.
    """

    key: SigningKey
    next_serial: Callable[[], int]

    def __call__(self, package: bytes) -> dict[str, int | bytes]:
        """Fields of a plan about a package in device form."""
        statement = Statement.of(package, self.next_serial())
        return {"serial": statement.serial, "operators": statement.operators, "signature": self.key.sign(statement)}


@dataclass
class Security:
    """Keys and the end that uses them. Make one for each start, with a new epoch, and give `seals` to every transport.

    Attributes:
        keys: of the participants.
        end: of the coordinator channel.
        signer: of packages; None where they are not signed.
    """

    keys: WatchedKeys
    end: EpochEnd
    signer: PackageSigner | None = None
    _guarded_at: float = field(default=float("-inf"), init=False)

    @classmethod
    def begin(cls, keys: WatchedKeys, epoch: int, clock: Callable[[], float], former: int = 0) -> Security:
        """With the epoch of this start and the one before, see `EpochEnd`."""
        return cls(keys, EpochEnd(Channel.COORDINATOR, keys, epoch, clock, former))

    @property
    def seals(self) -> Seals:
        """For transports."""
        return Seals(coordinator=self.end)

    def guard_at(self) -> float:
        """When `news` is due."""
        return self._guarded_at + GUARD_S

    def news(self, now: float) -> tuple[list[str], Counter[tuple[str, Status]]]:
        """Ids whose key was withdrawn, and refused messages by id and reason, both since the last call."""
        self._guarded_at = now
        revoked = sorted(id for id in self.keys.refresh() if self.keys.is_revoked(id))
        return revoked, self.end.take_refusals()
