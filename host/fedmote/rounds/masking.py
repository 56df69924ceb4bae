# SPDX-License-Identifier: Apache-2.0
"""The masked part of a round: whose keys, updates and shares are there, and which step comes next (protocol, section 13).

            every member's keys, or time over          the round's reporting is over           shares enough, or time over
    KEYS ---------------------------------> UPDATE ---------------------------------> SHARES ---------------------------->

Each step's end is journaled before anybody is told of the next one. What is counted here are blobs that the journal has; the
round machine asks, and performs nothing that this file does not say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

from fedmote.privacy.secure_sum import Collector
from fedmote.rounds.events import JournalMaskBlob, MaskStep, Reported
from fedmote.rounds.leases import Leases
from fedmote.rounds.progress import MAX_CRC_FAILURES
from fedmote.rounds.standing import MaskedRules, MaskedStanding
from fedmote.strategies import RoundPlan
from fedmote.wire.masking import keys_bytes, shares_bytes
from fedmote.wire.schema import Status


class Masking:
    """The masked members of one round.

    Attributes:
        group: of the round; its members are those of the plan alone.
        step: that is under way.
        shares_end: when shares are awaited no longer.
    """

    def __init__(self, rules: MaskedRules, plan: RoundPlan, run: bytes, leases: Leases) -> None:
        assert plan.masked is not None  # the round has masked members
        self.group = plan.masked
        self.step = MaskStep.KEYS
        self.shares_end = math.inf
        self._rules = rules
        self._leases = leases
        self._collector = Collector(self.group.ring, run, plan.round)
        self._round = plan.round
        self._keys: dict[str, int] = {}  # CRC by participant, as of shares
        self._shares: dict[str, int] = {}
        self._survivors: tuple[str, ...] = ()
        self._answers: dict[str, Reported] = {}  # shares that are on their way
        self._crc_failures: Counter[str] = Counter()
        self._silent: set[str] = set()  # survivors that will give no shares

    def restore(self, standing: MaskedStanding, counted: Collection[str], now: float) -> None:
        """Go on where the journal ends; the time for shares starts anew."""
        self._keys = dict(standing.keys)
        if MaskStep.KEYS in standing.ended:
            self.step = MaskStep.UPDATE
        if MaskStep.UPDATE in standing.ended:
            self.begin_shares(counted, now)
            self._shares = dict(standing.shares)

    def keys_end(self) -> float:
        """When keys are awaited no longer."""
        return self._leases.opened_at + self._rules.keys_fraction * self._longest_s()

    def _longest_s(self) -> float:
        """From the round's opening to the last deadline of a member; those of slow boards are known once they said hello."""
        return max(self._leases.deadline(who) for who in self.group.numbers) - self._leases.opened_at

    # ---- who, and what is awaited ------------------------------------------------------------------------------------

    def is_member(self, who: str) -> bool:
        """Whether a participant's update is to be masked."""
        return who in self.group.numbers

    def has_keys(self, who: str) -> bool:
        """Whether the keys of a member are there."""
        return who in self._keys

    @property
    def keyed(self) -> tuple[str, ...]:
        """Whose keys are there."""
        return tuple(sorted(self._keys))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose masked updates are summed; empty before that is fixed."""
        return self._survivors

    def silent(self) -> list[str]:
        """Survivors whose shares are not there yet, and are awaited."""
        if self.step is not MaskStep.SHARES:
            return []
        return [who for who in self._survivors if who not in self._shares and who not in self._silent]

    def wants(self, who: str) -> bool:
        """Whether a member is to stay: something is wanted of it, now or in a later step."""
        return self.step is not MaskStep.SHARES or who in self.silent()

    def too_few_keys(self) -> str | None:
        """Why no sum can come of the keys that are there, or None."""
        least = self.group.ring.least_members
        return None if len(self._keys) >= least else f"keys of {len(self._keys)} members, {least} are needed for a masked sum"

    def too_few(self, survivors: Collection[str]) -> str | None:
        """Why no sum can come of so many masked updates, or None."""
        least = self.group.ring.least_members
        return None if len(survivors) >= least else f"{len(survivors)} masked updates, {least} are needed for a masked sum"

    def complaint(self) -> str | None:
        """Why the masks cannot be taken off yet, or None."""
        numbers = self.group.numbers
        keyed, survivors, answered = ({numbers[who] for who in found} for found in (self._keys, self._survivors, self._shares))
        return self._collector.complaint(keyed, survivors, answered)

    def words(self, unsettled: Iterable[str]) -> str | None:
        """What is awaited, for the operator; None where nothing is."""
        if self.step is MaskStep.SHARES:
            return f"shares of {_members(len(self.silent()))}"
        left = [who for who in unsettled if self.is_member(who)]
        if self.step is MaskStep.KEYS:
            left = [who for who in left if who not in self._keys]
        return f"{'keys' if self.step is MaskStep.KEYS else 'masked updates'} of {_members(len(left))}" if left else None

    # ---- reports and blobs -------------------------------------------------------------------------------------------

    def is_known(self, report: Reported) -> bool:
        """Whether a blob is journaled already: its ack was lost."""
        known = {MaskStep.KEYS: self._keys, MaskStep.SHARES: self._shares}.get(report.mask_step or MaskStep.UPDATE, {})
        return report.round == self._round and known.get(report.id) == report.crc

    def objection(self, report: Reported) -> tuple[Status, str] | None:
        """Why a member's report cannot be taken in this step, or None."""
        if report.mask_step is not self.step:
            said = "nothing masked" if report.mask_step is None else f"step {int(report.mask_step)}"
            return Status.NOT_EXPECTED, f"{said} of a masked round, which is at step {int(self.step)}"
        if report.mask_step is MaskStep.KEYS and report.id in self._keys:
            return Status.DUPLICATE, "other keys of this attempt are there"
        if report.mask_step is MaskStep.SHARES and report.id in self._shares:
            return Status.DUPLICATE, "other shares of this member are there"
        size = self._size()
        return None if report.size == size else (Status.UPDATE_SHAPE, f"{report.size} bytes, {size} expected")

    def _size(self) -> int:
        match self.step:
            case MaskStep.KEYS:
                return keys_bytes(self.group.ring)
            case MaskStep.UPDATE:
                return self._rules.update_bytes
            case MaskStep.SHARES:
                return shares_bytes(self.group.ring)

    def took_keys(self, report: Reported, attempt: int, content: str) -> JournalMaskBlob:
        """Keys of a member are here."""
        self._keys[report.id] = report.crc
        return JournalMaskBlob(self._round, report.id, MaskStep.KEYS, attempt, report.crc, content)

    def forget_keys(self, who: str) -> None:
        """A member was reset before the step ended: it makes new ones."""
        self._keys.pop(who, None)

    # ---- the last step: shares ---------------------------------------------------------------------------------------

    def end_keys(self) -> None:
        """Whose keys came is fixed."""
        self.step = MaskStep.UPDATE

    def begin_shares(self, survivors: Collection[str], now: float) -> None:
        """Whose masked updates came is fixed."""
        self._survivors = tuple(sorted(who for who in survivors if self.is_member(who)))
        self.step, self.shares_end = MaskStep.SHARES, now + self._rules.shares_fraction * self._longest_s()

    def pull(self, report: Reported) -> bool:
        """Begin to take shares; false where they are on their way already."""
        is_new = self._answers.get(report.id) is None or _blob(self._answers[report.id]) != _blob(report)
        self._answers[report.id] = report
        return is_new

    def pulled(self, who: str) -> Reported | None:
        """Shares that a survivor is sending."""
        return self._answers.get(who)

    def took_shares(self, report: Reported, attempt: int, content: str) -> JournalMaskBlob:
        """Shares of a survivor are here."""
        del self._answers[report.id]
        self._shares[report.id] = report.crc
        return JournalMaskBlob(self._round, report.id, MaskStep.SHARES, attempt, report.crc, content)

    def spoiled(self, who: str, status: Status) -> bool:
        """Shares came and are unfit; whether the survivor may report them again."""
        del self._answers[who]
        self._crc_failures[who] += 1
        if status is Status.CRC and self._crc_failures[who] < MAX_CRC_FAILURES:
            return True
        self.lose(who)
        return False

    def lose(self, who: str) -> None:
        """Await no shares of a survivor; its masked update counts."""
        self._answers.pop(who, None)
        self._silent.add(who)


def _blob(report: Reported) -> tuple[int, int, int]:
    return report.handle, report.crc, report.size


def _members(count: int) -> str:
    return "1 member" if count == 1 else f"{count} members"
