# SPDX-License-Identifier: Apache-2.0
"""What a round machine is told, and what it asks for. All are values; none of them does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from fedmote.rounds.quarantine import Verdict
from fedmote.strategies import RoundPlan
from fedmote.wire.schema import Role, Status


class MaskStep(IntEnum):
    """Steps of a masked round, as `mask_step` of the protocol has them."""

    KEYS = 1
    UPDATE = 2
    SHARES = 3


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaidHello:
    """A participant checked in.

    Attributes:
        id, role: who, as it says itself.
        boot: nonce of its boot.
        board: what it runs on.
    """

    id: str
    role: Role
    boot: int
    board: str = ""


@dataclass(frozen=True)
class TookPlan:
    """A participant asks for chunks of the model of its plan: it has the plan, and is at work."""

    id: str


@dataclass(frozen=True)
class SentChunk:
    """A chunk of a reported update is here."""

    id: str


@dataclass(frozen=True)
class Reported:
    """A participant says that its update is ready.

    Attributes:
        id: who.
        handle, size, crc: the blob on its side.
        run, round, version: what the update belongs to, and its base.
        attempt: of the plan that it answers; None where the participant does not say.
        num_examples: its weight.
        max_examples: the largest weight that is believed of it; None: any.
        numbers: what else the report says (losses, counts), for the journal.
        mask_step: which blob of a masked round it is; None: an update that is not masked.
    """

    id: str
    handle: int
    size: int
    crc: int
    run: bytes
    round: int
    version: int
    num_examples: int
    attempt: int | None = None
    max_examples: int | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    mask_step: MaskStep | None = None


@dataclass(frozen=True)
class BlobArrived:
    """A reported update is here, decoded and sound; `content` names its bytes (BLAKE2b-256, hexadecimal)."""

    id: str
    handle: int
    content: str


@dataclass(frozen=True)
class BlobSpoiled:
    """A reported update is here and unfit: `status` says how."""

    id: str
    handle: int
    status: Status
    reason: str


@dataclass(frozen=True)
class Refused:
    """A participant said no: to a plan, or (with a handle) to a blob that we asked for."""

    id: str
    status: Status
    handle: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Doubled:
    """An authentic message of a participant came from an older boot, or beside another one of the same number."""

    id: str


@dataclass(frozen=True)
class Revoked:
    """A participant's key was withdrawn: nothing more will be believed of it."""

    id: str


Event = SaidHello | TookPlan | SentChunk | Reported | BlobArrived | BlobSpoiled | Refused | Doubled | Revoked


# ---- actions --------------------------------------------------------------------------------------------------------
# They are performed in the order given; each is finished, and what it writes is durable, before the next one begins.


@dataclass(frozen=True)
class OpenRound:
    """Journal that a round begins."""

    plan: RoundPlan


@dataclass(frozen=True)
class JournalPlan:
    """Journal that a participant begins an attempt."""

    round: int
    id: str
    attempt: int
    boot: int


@dataclass(frozen=True)
class SendPlan:
    """Send a participant its plan; it has `remaining_s` left. `mask_step` is what a masked one is asked for."""

    plan: RoundPlan
    id: str
    role: Role
    attempt: int
    remaining_s: float
    mask_step: MaskStep | None = None


@dataclass(frozen=True)
class SendWait:
    """Tell a participant to come back later."""

    id: str
    wait_ms: int
    reason: str


@dataclass(frozen=True)
class SendAck:
    """Tell a participant that its update is durable."""

    id: str
    handle: int
    round: int


@dataclass(frozen=True)
class SendRefuse:
    """Tell a participant no, and count it."""

    id: str
    status: Status
    reason: str
    handle: int | None = None
    round: int | None = None


@dataclass(frozen=True)
class NoteRefusal:
    """Count a no that a participant said to us."""

    id: str
    status: Status
    reason: str
    round: int


@dataclass(frozen=True)
class Pull:
    """Begin to pull a blob from a participant; a running pull from the same one ends."""

    id: str
    handle: int
    size: int
    crc: int


@dataclass(frozen=True)
class DropPull:
    """Forget what was pulled from a participant so far."""

    id: str


@dataclass(frozen=True)
class JournalUpdate:
    """Journal an update whose blob is stored: from here on it counts."""

    round: int
    id: str
    role: Role
    attempt: int
    num_examples: int
    crc: int
    content: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class JournalMaskBlob:
    """Journal keys or shares of a member of a masked sum whose blob is stored: from here on they count."""

    round: int
    id: str
    step: MaskStep
    attempt: int
    crc: int
    content: str


@dataclass(frozen=True)
class EndMaskStep:
    """Journal that a step is over: whose keys came, or whose masked updates did, is fixed from here on."""

    round: int
    step: MaskStep


@dataclass(frozen=True)
class JournalVerdict:
    """Journal what is said about an update that is not merged."""

    round: int
    verdict: Verdict


@dataclass(frozen=True)
class JournalQuarantine:
    """Journal that a participant is left out of the rounds after `round` up to `until`."""

    round: int
    id: str
    until: int
    reason: str


@dataclass(frozen=True)
class CloseRound:
    """Merge what the journal holds for this round, and answer with `committed` or `spoiled`.

    Attributes:
        plan: the round.
        missing: why, by id of those whose updates do not count.
    """

    plan: RoundPlan
    missing: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class AbandonRound:
    """Journal that a round ends without a merge; the model stays."""

    plan: RoundPlan
    reason: str
    missing: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Pause:
    """The run rests after failed rounds, or because too few came back.

    Attributes:
        pause_s: how long.
        complaint: why.
    """

    pause_s: float
    complaint: str


@dataclass(frozen=True)
class Resume:
    """The run goes on after a pause: a round is about to open."""


@dataclass(frozen=True)
class Stop:
    """The run ends: `complaint` is None where it reached its goal."""

    complaint: str | None


Action = (
    OpenRound
    | JournalPlan
    | SendPlan
    | SendWait
    | SendAck
    | SendRefuse
    | NoteRefusal
    | Pull
    | DropPull
    | JournalUpdate
    | JournalMaskBlob
    | EndMaskStep
    | JournalVerdict
    | JournalQuarantine
    | CloseRound
    | AbandonRound
    | Pause
    | Resume
    | Stop
)
