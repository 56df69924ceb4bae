# SPDX-License-Identifier: Apache-2.0
"""The coordinator's keys, and what it hears of them: withdrawn ones, second boards, refused messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedmote.package.signature import SigningKey, Statement
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Status
from fedmote.wire.seal import EpochEnd, Keys, Seals

# Keys are looked at this often: a revocation takes hold within it. Refusals are written as seldom, whatever an attacker sends.
GUARD_S = 1.0
# A device that may go on under its old key is offered the next one so seldom: it may be busy, or its firmware cannot take one.
OFFER_S = 60.0
# Offers of a key in one start that were not taken, after which the operator is told.
MAX_OFFERS = 3

_REASONS = {
    Status.TOKEN_USED: "shows a token that served another board, or was used: a second board?",
    Status.TOKEN_EXPIRED: "shows a token whose time is over; `fedmote enroll token` makes another one after `revoke`",
    Status.REVOKED: "was revoked and still speaks",
}


class WatchedKeys(Keys, Protocol):
    """Keys that may be withdrawn while the coordinator runs."""

    def refresh(self) -> frozenset[str]:
        """Look for changes; ids of participants that were added, revoked, or got another key since the last call."""

    def next_key(self, id: str, boot: int) -> bytes | None:
        """The 32 bytes that take the place of a participant's key: durable, and each time the same; None: nothing does."""


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
    _offers: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)  # how many, and when the last one
    _told: set[tuple[str, Status]] = field(default_factory=set, init=False)

    @classmethod
    def begin(cls, keys: WatchedKeys, epoch: int, clock: Callable[[], float], former: int = 0) -> Security:
        """With the epoch of this start and the one before, see `EpochEnd`."""
        return cls(keys, EpochEnd(Channel.COORDINATOR, keys, epoch, clock, former))

    @property
    def seals(self) -> Seals:
        """For transports."""
        return Seals(coordinator=self.end)

    def offer(self, who: str, boot: int, now: float) -> Message | None:
        """The one answer to a hello of a participant whose key is to be replaced; None: it is answered as every other one.

        A device with a token gets nothing else. One whose key is rotated may go on under the old one.

        Raises:
            StoreError: the next key cannot be written.
        """
        renewal = self.keys.renewal(who)
        if renewal is None or renewal.is_used:
            self._offers.pop(who, None)
            return None
        count, last = self._offers.get(who, (0, float("-inf")))
        if not renewal.is_token and now - last < OFFER_S:
            return None
        self._offers[who] = (count + 1, now)
        secret = self.keys.next_key(who, boot)
        return None if secret is None else Message.of(Kind.REKEY, secret=secret)

    def is_not_taken(self, who: str) -> bool:
        """Whether the operator should hear now that a participant does not take its next key."""
        return self._offers.get(who, (0, 0.0))[0] == MAX_OFFERS

    def complaints(self, refusals: Counter[tuple[str, Status]]) -> list[str]:
        """What of refused messages the operator should hear, once for each participant and reason."""
        news = sorted(one for one in refusals if one[1] in _REASONS and one not in self._told)
        self._told.update(news)
        return [f"{who}: {_REASONS[status]}" for who, status in news]

    def guard_at(self) -> float:
        """When `news` is due."""
        return self._guarded_at + GUARD_S

    def news(self, now: float) -> tuple[list[str], Counter[tuple[str, Status]]]:
        """Ids whose key was withdrawn, and refused messages by id and reason, both since the last call."""
        self._guarded_at = now
        revoked = sorted(id for id in self.keys.refresh() if self.keys.is_revoked(id))
        return revoked, self.end.take_refusals()
