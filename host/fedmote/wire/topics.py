# SPDX-License-Identifier: Apache-2.0
"""MQTT topics and qualities of service (device_sdk/protocol/SPEC.md, section 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from fedmote.errors import LocalWireError
from fedmote.wire.schema import LIMIT_IDENTIFIER, LIMIT_PROTOCOL, Channel, Kind, Status

ROOT: Final = f"fedmote/{LIMIT_PROTOCOL}"
Direction = Literal["up", "dn"]

_IDENTIFIER = re.compile(rf"[a-z0-9-]{{1,{LIMIT_IDENTIFIER}}}")
_TOPIC = re.compile(
    rf"{ROOT}/([a-z0-9-]{{1,{LIMIT_IDENTIFIER}}})/([a-z0-9-]{{1,{LIMIT_IDENTIFIER}}})/(cell/)?(up|dn)/([a-z0-9-]+)"
)
_KINDS = {kind.name.lower(): kind for kind in Kind}
_UNACKNOWLEDGED = frozenset({Kind.GET, Kind.DATA})  # the transfer has its own acknowledgement


@dataclass(frozen=True)
class Address:
    """What a topic says.

    Attributes:
        site: of the fleet.
        id: of the participant; on the cell channel the device's.
        direction: "up" from the participant, "dn" to it.
        channel: coordinator or cell.
        kind: last level, as text: a newer peer may use kinds that we do not know.
    """

    site: str
    id: str
    direction: Direction
    channel: Channel
    kind: str

    @property
    def known_kind(self) -> Kind | None:
        """The kind, where we know it."""
        return _KINDS.get(self.kind)


def topic(site: str, id: str, direction: Direction, kind: Kind | Literal["#"], channel: Channel = Channel.COORDINATOR) -> str:
    """The topic of a message, or with kind "#" the filter of all kinds; LocalWireError for names that cannot be levels."""
    for name in (site, id):
        if name != "+" and not _IDENTIFIER.fullmatch(name):
            raise LocalWireError(Status.ARGUMENT, f"{name!r} cannot be a level of a topic")
    cell = "cell/" if channel is Channel.CELL else ""
    return f"{ROOT}/{site}/{id}/{cell}{direction}/{kind if isinstance(kind, str) else kind.name.lower()}"


def parse(text: str) -> Address | None:
    """What a topic says; None for those that are not ours."""
    match = _TOPIC.fullmatch(text)
    if match is None:
        return None
    channel = Channel.CELL if match[3] else Channel.COORDINATOR
    return Address(match[1], match[2], "up" if match[4] == "up" else "dn", channel, match[5])


def quality(kind: Kind) -> Literal[0, 1]:
    """Quality of service that a kind travels at."""
    return 0 if kind in _UNACKNOWLEDGED else 1
