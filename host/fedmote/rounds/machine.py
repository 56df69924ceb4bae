# SPDX-License-Identifier: Apache-2.0
"""The round machine: events in, actions out; no I/O, no clock, no randomness.

            everybody there, or window over            all plans taken             all settled, or goal, or deadline
 SELECTION ---------------------------> CONFIGURATION ---------------> REPORTING ----------------------------------+
  ^  ^ ^                                      |                            |         (UNMASKING, where masked sums  |
  |  | |                                      |                            |          are made: shares, or time over)
  |  | |  nobody came                         +-------- deadline ----------+                   enough reported?     |
  |  | +--------+                                                                            yes |          | no    |
  |  |  committed / spoiled                                                                      v          v       |
  |  +-------------------------------------------------------------------------------------- CLOSING     abandon <--+
  |                                                                                           (merge)   (model stays)
  +---- PAUSED <--- too many rounds failed in a row, or too few came back after a pause ------------------------'

Rules that hold whatever arrives, and in whichever order:

* A participant counts at most once per round: the first update that was journaled. A repeated report is answered with the
  same ack, another one with `duplicate`.
* An ack stands behind the journal entry in the list of actions, so it cannot leave before the entry is durable.
* Every wait ends: selection at its window, a round at the last deadline of those it waits for. A deadline moves while chunks
  come, and never further than the grace. After `max_failed_rounds` failures in a row the run ends, or pauses; a pause is
  twice as long as the one before, and after it a round opens only if as many are there as it needs.
* Whoever was reset too often waits; nobody else waits for it.
* Whoever is not expected is refused with a status, and changes nothing.
* Whoever is in quarantine is not asked for: its hellos are answered with `wait` and the reason.

A participant speaks first. Plans are given in answer to a hello, again under the same attempt where the boot nonce is the
same (the plan was lost), under the next attempt where it changed (the device was reset); a report under an earlier attempt is
answered with the newest plan, whose attempt its sender adopts. Members that are being waited for
are named by `words`.

Masked members (`masking.py`) hand in keys first, then their updates, which are counted like any other; once reporting is over
those whose updates came are asked for shares. A sum that cannot be unmasked leaves all of them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace

from fedmote.aggregation import Finding
from fedmote.privacy.group import MaskedGroup
from fedmote.rounds.events import (
    AbandonRound,
    Action,
    BlobArrived,
    BlobSpoiled,
    CloseRound,
    Doubled,
    DropPull,
    EndMaskStep,
    Event,
    JournalPlan,
    JournalQuarantine,
    JournalUpdate,
    JournalVerdict,
    MaskStep,
    NoteRefusal,
    OpenRound,
    Pause,
    Pull,
    Refused,
    Reported,
    Resume,
    Revoked,
    SaidHello,
    SendAck,
    SendPlan,
    SendRefuse,
    SendWait,
    SentChunk,
    Stop,
    TookPlan,
)
from fedmote.rounds.leases import Leases
from fedmote.rounds.masking import Masking
from fedmote.rounds.pace import Pace, Resets
from fedmote.rounds.progress import (
    MAX_ATTEMPTS,
    MAX_CRC_FAILURES,
    MAX_OLD_HELLOS,
    MAX_OLD_REPORTS,
    SIGN_ROUNDS,
    Progress,
    Step,
)
from fedmote.rounds.quarantine import DOUBLED, Quarantine, Verdict
from fedmote.rounds.selection import Selection
from fedmote.rounds.standing import MaskedStanding, OpenRoundStanding, Rules, Standing
from fedmote.rounds.status import RunStatus, Stage
from fedmote.strategies import Member, Previous, RoundPlan
from fedmote.wire.schema import Role, Status


class RoundMachine:
    """All rounds of one run.

    `now` is any monotonic time in seconds. Call `tick` once at the start and whenever `wake_at` has passed; perform the
    actions of each call in order. After `CloseRound` call `committed` or `spoiled`. `waiting` says whose updates were announced
    and wait for their turn to be pulled, which is no fault of theirs.

    Attributes:
        rules: of the run.
        version: of the newest checkpoint.
        plan: the open round, or None.
        num_merged: merges made.
        num_counted: updates that count in the open round.
    """

    def __init__(self, rules: Rules, standing: Standing, now: float, waiting: Callable[[], Set[str]] = frozenset[str]) -> None:
        self._waiting = waiting
        self.rules = rules
        self.version = standing.version
        self.num_merged = standing.num_merged
        self.plan: RoundPlan | None = None
        self._num_rounds = standing.num_rounds
        self._num_failed = standing.num_failed
        self._previous = standing.previous
        self._last_counted = dict(standing.last_counted)
        self._quarantine = Quarantine(rules.quarantine, standing.streaks, standing.quarantined)
        self._signs: dict[str, list[int]] = {}
        self._members = {member.id: member for cell in rules.cells for member in cell.members()}
        self._progress: dict[str, Progress]
        self._unsettled: set[str]
        self._masking: Masking | None
        self._is_done = False
        self._leases = Leases(rules.windows, now)
        self._pace = Pace(rules.windows, rules.seed, len(self._members))
        self._resets = Resets(rules.windows.max_rejoins_per_minute)
        self._round_s: float | None = None
        self._num_pauses = 0
        self._paused_until: float | None = None
        self._pause_reason = ""
        self._begin_selection(now)
        if standing.open is not None:
            self._restore(standing.open, now)

    # ---- what the coordinator asks -----------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """Where the run is."""
        if self._is_done:
            return Stage.DONE
        if self.plan is None:
            return Stage.SELECTION if self._paused_until is None else Stage.PAUSED
        if self._is_closing:
            return Stage.CLOSING
        if self._is_unmasking:
            return Stage.UNMASKING
        is_configured = all(one.step not in (Step.EXPECTED, Step.PLANNED) for one in self._progress.values())
        return Stage.REPORTING if is_configured else Stage.CONFIGURATION

    def wake_at(self) -> float:
        """When `tick` has something to do if no event comes before."""
        if self._is_done or self._is_closing:
            return math.inf
        if self.plan is not None:
            return self._round_wakes_at()
        return self._selection.wake_at() if self._paused_until is None else self._paused_until

    def is_member(self, who: str) -> bool:
        """Whether a participant has a plan in the open round."""
        return who in self._progress and self._progress[who].attempt > 0

    def role_of(self, who: str) -> Role:
        """Role of a participant of this fleet."""
        return self._members[who].role

    def claimed_examples(self, who: str) -> int:
        """Weight of the update that a participant is sending; 0 where it sends none."""
        report = self._sending(who)
        return 0 if report is None else report.num_examples

    def mask_step(self, who: str) -> MaskStep | None:
        """Which blob of a masked round a participant is sending; None: an update that is not masked, or nothing."""
        report = self._sending(who)
        return None if report is None else report.mask_step

    def _sending(self, who: str) -> Reported | None:
        shares = None if self._masking is None else self._masking.pulled(who)
        return shares or (self._progress[who].report if who in self._progress else None)

    @property
    def num_expected(self) -> int:
        """Members of the open round."""
        return len(self._progress)

    def counted(self) -> list[str]:
        """Ids whose updates count in the open round."""
        return sorted(who for who, one in self._progress.items() if one.step is Step.COUNTED)

    def missing(self) -> dict[str, str]:
        """Ids of the open round whose updates do not count yet, and why."""
        waiting = self._waiting()
        return {who: one.words(who in waiting) for who, one in sorted(self._progress.items()) if one.step is not Step.COUNTED}

    @property
    def complaint(self) -> str | None:
        """Why the run is paused; None where it is not."""
        return self._pause_reason if self._paused_until is not None else None

    def status(self, now: float) -> RunStatus:
        """Where the run stands, for the operator."""
        selection, wake_at = self._selection, self.wake_at()
        is_open = self.plan is not None
        expected = len(self._progress) if is_open else selection.num_expected
        masking = self._masking
        silent = [] if masking is None else masking.silent()
        return RunStatus(
            stage=self.stage,
            merged=self.num_merged,
            goal=self.rules.goal,
            failed=self._num_failed,
            round=self._num_rounds if is_open else self._num_rounds + 1,
            phase=(self.plan.phase if self.plan is not None else selection.phase).name.lower(),
            come=self.num_counted if is_open else selection.num_present,
            expected=expected,
            needed=self._needed_of(expected),
            missing=self.missing() | dict.fromkeys(silent, "its shares are awaited")
            if is_open
            else dict.fromkeys(selection.absent(), "not there"),
            awaited=None if masking is None or self._is_closing else masking.words(self._unsettled),
            left_s=None if math.isinf(wake_at) else max(0.0, wake_at - now),
            reason=self.complaint,
        )

    def words(self, now: float) -> str:
        """One line for the operator: who is missing, what is awaited, and how long the wait can still be."""
        return self.status(now).words()

    # ---- events ------------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""
        if event.id not in self._members:
            return [SendRefuse(event.id, Status.NOT_EXPECTED, "no such participant in this fleet")]
        match event:
            case SaidHello():
                actions = self._hello(event, now)
            case TookPlan():
                actions = self._took_plan(event, now)
            case SentChunk():
                self._leases.progressed(event.id, now)
                actions = []
            case Reported():
                actions = self._reported(event, now)
            case BlobArrived():
                actions = self._arrived(event)
            case BlobSpoiled():
                actions = self._spoiled(event)
            case Refused():
                actions = self._refused(event)
            case Doubled() | Revoked():
                actions = self._shut_out(event)
        self._settle(event.id)
        return actions + self._close_if_over(now)

    def tick(self, now: float) -> list[Action]:
        """React to the passing of time."""
        if self._is_closing and not self._is_merging:
            return self._close(self.missing())  # a restart in between: only the merge is missing
        if self._is_done or self._is_closing:
            return []
        if self.num_merged >= self.rules.goal:
            self._is_done = True
            return [Stop(None)]
        if self.plan is None:
            return self._wake_up(now) if self._paused_until is not None else self._select(now)
        return self._close_if_over(now)

    def judged(self, findings: Iterable[Finding]) -> list[Verdict]:
        """What the merge of the closed round says about its updates; to be journaled with the commit."""
        assert self.plan is not None  # called after CloseRound only
        return [self._quarantine.judge(self.plan.round, finding) for finding in findings]

    def committed(self, version: int, now: float) -> list[Action]:
        """The merge of the closed round is durable as checkpoint `version`."""
        assert self.plan is not None  # called after CloseRound only
        self.version = version
        self.num_merged += 1
        self._num_failed = self._num_pauses = 0
        self._pause_reason = ""
        self._round_s = now - self._leases.opened_at
        self._leave_round(is_committed=True, now=now)
        return self.tick(now)

    def spoiled(self, reason: str, now: float) -> list[Action]:
        """The merge of the closed round was refused: the model stays."""
        assert self.plan is not None  # called after CloseRound only
        return self._abandon(reason, now)

    # ---- selection ---------------------------------------------------------------------------------------------------

    def _begin_selection(self, now: float) -> None:
        self.plan = None
        self._progress = {}
        self._unsettled = set()
        self._masking = None
        self.num_counted = 0
        self._is_closing = self._is_merging = False
        self._left_out = self._quarantine.left_out(self._num_rounds + 1)
        self._selection = Selection(self.rules, self._previous, now, self._left_out)

    def _select(self, now: float) -> list[Action]:
        """Open a round if enough participants are there, or the window is over."""
        seed = self.rules.round_seed(self._num_rounds + 1)
        members = self._selection.chosen(seed, now)
        if self._num_pauses > 0:
            return self._select_after_pause(seed, members, now)
        if members:
            return self._open(seed, members, now)
        if self._selection.is_hopeless(now):
            return self._open(seed, [], now) + self._abandon("nobody who is expected in this phase came", now)
        return []

    def _select_after_pause(self, seed: int, members: list[Member], now: float) -> list[Action]:
        """Open a round only if as many are there as it needs; a round that cannot succeed helps nobody."""
        needed = self._needed_of(self._selection.num_expected)
        if len(members) >= needed:
            return [Resume(), *self._open(seed, members, now)]
        if not members and not self._selection.is_hopeless(now):
            return []
        came = self._selection.num_present
        return [self._pause(f"{came} of {self._selection.num_expected} participants came back, {needed} are needed", now)]

    def _pause(self, complaint: str, now: float) -> Pause:
        windows = self.rules.windows
        pause_s = min(windows.max_pause_s, windows.pause_s * 2.0 ** min(self._num_pauses, 64))
        self._num_pauses += 1
        self._paused_until, self._pause_reason = now + pause_s, complaint
        return Pause(pause_s, complaint)

    def _wake_up(self, now: float) -> list[Action]:
        """The pause is over: who is there now is asked anew."""
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._begin_selection(now)
        return []

    def _masked_of(self, members: Sequence[Member]) -> MaskedGroup | None:
        """The group with those of its members that are in the round; None where nobody is."""
        if self.rules.masked is None:
            return None
        group = self.rules.masked.group
        numbers = {member.id: group.numbers[member.id] for member in sorted(members) if member.id in group.numbers}
        return replace(group, numbers=numbers) if numbers else None

    def _open(self, seed: int, members: Sequence[Member], now: float) -> list[Action]:
        self._num_rounds += 1
        self.plan = RoundPlan(
            self._num_rounds,
            self._selection.phase,
            self.version,
            seed,
            tuple(sorted(members)),
            self._selection.num_candidates,
            self._masked_of(members),
        )
        self._follow(self.plan, now)
        return [OpenRound(self.plan)]

    def _follow(self, plan: RoundPlan, now: float) -> None:
        self._leases = Leases(self.rules.windows, now)
        self._progress = {member.id: Progress(member) for member in plan.members}
        self._unsettled = set(self._progress)
        self.num_counted = 0
        self._masking = None
        if plan.masked is None or self.rules.masked is None:
            return
        least = plan.masked.ring.least_members
        if len(plan.masked.numbers) >= least:
            self._masking = Masking(self.rules.masked, plan, self.rules.run, self._leases)
            return
        self._fail_all(plan.masked.numbers, f"{len(plan.masked.numbers)} of its group are there, {least} are needed")

    def _fail_all(self, members: Iterable[str], reason: str) -> None:
        for who in members:
            self._progress[who].fail(reason)
            self._settle(who)

    def _settle(self, who: str) -> None:
        """Count a member from which nothing more is awaited, once."""
        if who in self._unsettled and self._progress[who].is_settled:
            self._unsettled.remove(who)
            self.num_counted += self._progress[who].step is Step.COUNTED

    def _restore(self, standing: OpenRoundStanding, now: float) -> None:
        """Go on with a round that was open when the coordinator ended; its deadline starts anew."""
        self.plan = standing.plan
        self._follow(standing.plan, now)
        for who, (attempt, boot) in standing.attempts.items():
            self._progress[who].attempt, self._progress[who].boot = attempt, boot
            self._progress[who].step = Step.PLANNED
            self._progress[who].num_resets = 1  # how far apart its attempts were is not in the ledger
            self._resets.remember(who, boot)
            self._leases.joined(who, standing.boards.get(who, ""))
        for who, crc in standing.counted.items():
            self._progress[who].step, self._progress[who].crc = Step.COUNTED, crc
            self._settle(who)
        self._is_closing = standing.is_closed
        if self._masking is not None and standing.masked is not None:
            self._restore_masking(self._masking, standing.masked, now)

    def _restore_masking(self, masking: Masking, standing: MaskedStanding, now: float) -> None:
        masking.restore(standing, self.counted(), now)
        for who in masking.keyed:
            if self._progress[who].step is Step.PLANNED:
                self._progress[who].step = Step.KEYED
        if masking.step is not MaskStep.KEYS:
            self._leave_out_keyless(masking)
        if masking.step is MaskStep.SHARES:
            self._fail_all(sorted(self._unsettled), "no update came in time")

    # ---- configuration -----------------------------------------------------------------------------------------------

    def _hello(self, hello: SaidHello, now: float) -> list[Action]:
        if hello.role is not self._members[hello.id].role:
            expected = self._members[hello.id].role.name.lower()
            return [SendRefuse(hello.id, Status.NOT_EXPECTED, f"this id belongs to a {expected}")]
        quarantine_s = self._quarantine_s(hello, now)
        if quarantine_s > 0:
            return [self._wait(hello.id, "reset too often", quarantine_s)]
        if self.plan is not None or self._is_done:
            return self._answer(hello, now)
        if self._paused_until is not None:
            return [self._wait(hello.id, "the run is paused", self._paused_until - now)]
        actions = self._select(now) if self._selection.came(self._members[hello.id], now) else []
        if self.plan is not None:
            return actions + self._answer(hello, now)
        return [*actions, self._wait(hello.id, self._left_out.get(hello.id, "round not open yet"))]

    def _quarantine_s(self, hello: SaidHello, now: float) -> float:
        """A late hello from before the last reset is no reset."""
        progress = self._progress.get(hello.id)
        is_old = progress is not None and hello.boot in progress.old_boots
        return 0.0 if is_old else self._resets.quarantine_s(hello.id, hello.boot, now)

    def _answer(self, hello: SaidHello, now: float) -> list[Action]:
        progress = self._progress.get(hello.id)
        if self._is_done:
            return [self._wait(hello.id, "the run is complete")]
        if progress is None:
            return [self._wait(hello.id, self._left_out.get(hello.id, "not in this round"), self._time_to_next(now))]
        masking = self._masking_of(hello.id)
        if masking is not None and masking.step is not MaskStep.KEYS and not self._is_closing:
            return self._answer_masked(masking, progress, hello.boot, now)
        if self._is_closing or self._is_unmasking or progress.is_settled:
            return [self._wait(hello.id, progress.reason or "this round has your update", self._time_to_next(now))]
        self._leases.joined(hello.id, hello.board)
        return self._give_plan(progress, hello.boot, now)

    def _masking_of(self, who: str) -> Masking | None:
        """The masked part of the round, where a participant is in it."""
        return self._masking if self._masking is not None and self._masking.is_member(who) else None

    def _answer_masked(self, masking: Masking, progress: Progress, boot: int, now: float) -> list[Action]:
        """The hello of a masked member once it is fixed whose keys came: nobody begins anew."""
        who = progress.member.id
        if boot in progress.old_boots and not progress.is_settled:
            return self._old_boot(progress)
        actions: list[Action] = []
        if progress.boot is not None and progress.boot != boot and progress.step is not Step.FAILED and masking.wants(who):
            actions = self._lose_masked(masking, progress, "reset after its keys were fixed")
        if progress.step is Step.FAILED or not masking.wants(who) or actions:
            return [*actions, self._wait(who, progress.reason or "this round has your update", self._time_to_next(now))]
        return [self._masked_plan(masking, progress, now)]

    def _masked_plan(self, masking: Masking, progress: Progress, now: float) -> SendPlan:
        assert self.plan is not None  # callers looked
        who = progress.member.id
        end = masking.shares_end if masking.step is MaskStep.SHARES else self._leases.latest(who)
        return SendPlan(self.plan, who, progress.member.role, progress.attempt, max(0.0, end - now), masking.step)

    def _lose_masked(self, masking: Masking, progress: Progress, reason: str) -> list[Action]:
        """Nothing more comes of a member: what it handed in counts."""
        who = progress.member.id
        if progress.step is Step.COUNTED:
            masking.lose(who)
        else:
            progress.fail(reason)
        return [DropPull(who)]

    def _time_to_next(self, now: float) -> float:
        """Half of what the open round still takes if it is like the one before: whoever comes back then is hardly too late."""
        if self._round_s is None or self._is_closing:
            return 0.0
        return max(0.0, self._leases.opened_at + self._round_s - now) / 2

    def _give_plan(self, progress: Progress, boot: int, now: float) -> list[Action]:
        assert self.plan is not None  # callers looked
        actions: list[Action] = []
        if boot in progress.old_boots:
            return self._old_boot(progress)
        if progress.boot != boot:
            progress.num_resets += not self._resets.is_counted_already(progress.member.id)
            if progress.num_resets > MAX_ATTEMPTS:
                progress.fail(f"reset {MAX_ATTEMPTS} times in this round")
                return [DropPull(progress.member.id), self._wait(progress.member.id, progress.reason)]
            actions += self._begin_attempt(progress, boot)
        elif progress.step is Step.EXPECTED:
            progress.step = Step.PLANNED
        return [*actions, self._newest_plan(progress, now)]

    def _newest_plan(self, progress: Progress, now: float) -> SendPlan:
        assert self.plan is not None  # callers looked
        member = progress.member
        remaining = max(0.0, self._leases.latest(member.id) - now)
        masking = self._masking_of(member.id)
        step = None if masking is None else masking.step
        return SendPlan(self.plan, member.id, member.role, progress.attempt, remaining, step)

    def _begin_attempt(self, progress: Progress, boot: int) -> list[Action]:
        assert self.plan is not None  # callers looked
        is_pulling = progress.step is Step.SENDING
        if progress.boot is not None:
            progress.old_boots.add(progress.boot)
        progress.boot, progress.report, progress.step = boot, None, Step.PLANNED
        progress.attempt += 1
        if self._masking is not None:
            self._masking.forget_keys(progress.member.id)
        journal = JournalPlan(self.plan.round, progress.member.id, progress.attempt, boot)
        return [DropPull(progress.member.id), journal] if is_pulling else [journal]

    def _old_boot(self, progress: Progress) -> list[Action]:
        """A message from before the last reset: a late duplicate, or a second board with the same id."""
        progress.num_old_hellos += 1
        if progress.num_old_hellos < MAX_OLD_HELLOS:
            return []
        progress.fail(DOUBLED)
        return [DropPull(progress.member.id), SendRefuse(progress.member.id, Status.NOT_EXPECTED, progress.reason)]

    def _shut_out(self, event: Doubled | Revoked) -> list[Action]:
        """What counts already stays; nothing more is awaited from whoever cannot be believed."""
        if isinstance(event, Doubled):
            return self._doubled(event.id)
        return self._fail(event.id, "its key was revoked")

    def _doubled(self, who: str) -> list[Action]:
        """A sign of a second board with the same key: any moment shows it, also one at which nothing is awaited."""
        signs = [number for number in self._signs.get(who, ()) if number > self._num_rounds - SIGN_ROUNDS]
        self._signs[who] = [*signs, self._num_rounds]
        if len(self._signs[who]) < MAX_OLD_HELLOS or self._num_rounds == 0:
            return []
        del self._signs[who]
        actions = self._fail(who, DOUBLED)
        until = self._quarantine.doubled(self._num_rounds, who)
        if until is not None:
            actions.append(JournalQuarantine(self._num_rounds, who, until, DOUBLED))
            if self.plan is None:
                self._left_out = self._quarantine.left_out(self._num_rounds + 1)
                self._selection.leave_out(self._members[who])
        return [*actions, SendRefuse(who, Status.NOT_EXPECTED, DOUBLED)]

    def _fail(self, who: str, reason: str) -> list[Action]:
        """Wait for a member of the open round no longer."""
        progress = self._progress.get(who)
        if self.plan is None or self._is_closing or progress is None:
            return []
        masking = self._masking_of(who)
        if masking is not None and progress.step is Step.COUNTED:
            return self._lose_masked(masking, progress, reason)
        if progress.is_settled:
            return []
        progress.fail(reason)
        return [DropPull(who)]

    def _wait(self, who: str, reason: str, not_before_s: float = 0.0) -> SendWait:
        return SendWait(who, self._pace.wait_ms(who, not_before_s), reason)

    def _took_plan(self, event: TookPlan, now: float) -> list[Action]:
        progress = self._progress.get(event.id)
        self._leases.progressed(event.id, now)
        if progress is not None and progress.step is Step.PLANNED:
            progress.step = Step.TRAINING
        return []

    # ---- reporting ---------------------------------------------------------------------------------------------------

    def _reported(self, report: Reported, now: float) -> list[Action]:
        if report.run == self.rules.run and self._last_counted.get(report.id) == (report.round, report.crc):
            return [SendAck(report.id, report.handle, report.round)]  # the ack was lost
        masking = self._masking_of(report.id)
        if masking is not None and report.run == self.rules.run and masking.is_known(report):
            return [SendAck(report.id, report.handle, report.round)]
        complaint = self._complaint(report)
        if complaint is not None:
            status, reason = complaint
            refuse = SendRefuse(report.id, status, reason, report.handle, report.round)
            if status in (Status.UPDATE_SHAPE, Status.FIELD_RANGE):
                if masking is not None and self._progress[report.id].step is Step.COUNTED:
                    return [*self._lose_masked(masking, self._progress[report.id], reason), refuse]
                self._progress[report.id].fail(f"update refused: {_word(status)}")  # it would only say the same again
                return [self._invalid(report.round, report.id, f"{_word(status)}: {reason}"), refuse]
            return [refuse]
        if masking is not None and masking.step is MaskStep.SHARES:
            return [Pull(report.id, report.handle, report.size, report.crc)] if masking.pull(report) else []
        progress = self._progress[report.id]
        if report.attempt is not None and report.attempt < progress.attempt:
            progress.num_old_reports += 1
            return [self._newest_plan(progress, now)]  # it answers with the same report under the attempt of the plan
        if 0 < report.num_examples < self.rules.min_examples:
            # Before a byte of it is pulled: what is never here cannot be read out. It may have more samples in another round.
            reason = f"{report.num_examples} examples, at least {self.rules.min_examples}"
            progress.fail(f"update refused: {reason}")
            return [SendRefuse(report.id, Status.NO_SAMPLES, reason, report.handle, report.round)]
        running = progress.report
        if running is not None and (running.handle, running.crc, running.size) == (report.handle, report.crc, report.size):
            return []  # repeated while it is being pulled
        progress.report, progress.step = report, Step.SENDING
        return [Pull(report.id, report.handle, report.size, report.crc)]

    def _complaint(self, report: Reported) -> tuple[Status, str] | None:
        """Why a report cannot be taken, or None."""
        if report.run != self.rules.run:
            return Status.UNKNOWN_RUN, "another run"
        if self.plan is None or self._is_closing or self._is_done or report.round < self.plan.round:
            return Status.STALE_ROUND, f"round {report.round} is over"
        progress = self._progress.get(report.id)
        if report.round > self.plan.round or progress is None or progress.attempt == 0:
            return Status.NOT_EXPECTED, f"no plan for round {report.round}"
        masking = self._masking_of(report.id)
        is_of_shares = masking is not None and report.mask_step is MaskStep.SHARES
        if progress.step is Step.COUNTED and not is_of_shares:
            return Status.DUPLICATE, "another update of this round is counted"
        if progress.step is Step.FAILED:
            return Status.NOT_EXPECTED, progress.reason
        if self._is_unmasking and not is_of_shares:
            return Status.STALE_ROUND, "updates of this round are awaited no longer"
        objection = masking.objection(report) if masking is not None else _unmasked(report)
        if objection is not None:
            return objection
        if report.version != self.plan.version:
            return Status.WRONG_MODEL, f"base is {report.version}, the round's is {self.plan.version}"
        behind = 0 if report.attempt is None else progress.attempt - report.attempt
        if behind < 0 or (behind > 0 and progress.num_old_reports >= MAX_OLD_REPORTS):
            return Status.STALE_ROUND, f"attempt {report.attempt}, the newest plan is attempt {progress.attempt}"
        limit = self.rules.max_update_bytes(progress.member.role)
        if masking is None and not 0 < report.size <= limit:
            return Status.UPDATE_SHAPE, f"{report.size} bytes, at most {limit}"
        if report.max_examples is not None and report.num_examples > report.max_examples:
            return Status.FIELD_RANGE, f"{report.num_examples} examples, at most {report.max_examples}"
        return None

    def _arrived(self, event: BlobArrived) -> list[Action]:
        masking = self._masking_of(event.id)
        shares = None if masking is None else masking.pulled(event.id)
        if masking is not None and shares is not None and self.plan is not None and not self._is_closing:
            if shares.handle != event.handle:
                return []
            attempt = self._progress[event.id].attempt
            return [
                masking.took_shares(shares, attempt, event.content),
                SendAck(event.id, event.handle, self.plan.round),
            ]
        progress = self._pulling(event.id, event.handle)
        if progress is None or progress.report is None or self.plan is None:
            return []
        report, member = progress.report, progress.member
        if masking is not None and report.mask_step is MaskStep.KEYS:
            progress.step, progress.report = Step.KEYED, None
            keys = masking.took_keys(report, progress.attempt, event.content)
            return [keys, SendAck(member.id, event.handle, self.plan.round)]
        progress.step, progress.report, progress.crc = Step.COUNTED, None, report.crc
        self._last_counted[member.id] = (self.plan.round, report.crc)
        journal = JournalUpdate(
            self.plan.round,
            member.id,
            member.role,
            progress.attempt,
            report.num_examples,
            report.crc,
            event.content,
            report.numbers,
        )
        return [journal, SendAck(member.id, event.handle, self.plan.round)]

    def _spoiled(self, event: BlobSpoiled) -> list[Action]:
        masking = self._masking_of(event.id)
        shares = None if masking is None else masking.pulled(event.id)
        if masking is not None and shares is not None and self.plan is not None:
            if shares.handle != event.handle or masking.spoiled(event.id, event.status):
                return []
            return [SendRefuse(event.id, event.status, event.reason, event.handle, self.plan.round)]
        progress = self._pulling(event.id, event.handle)
        if progress is None or self.plan is None:
            return []
        if event.status is Status.CRC and progress.num_crc_failures + 1 < MAX_CRC_FAILURES:
            # The update itself may be sound: the participant repeats its report, and the pull starts anew.
            progress.num_crc_failures += 1
            self._rest(progress)
            return []
        # Whoever trained garbage would train it again: it is left out until the next round.
        progress.fail(f"update refused: {_word(event.status)}")
        refuse = SendRefuse(event.id, event.status, event.reason, event.handle, self.plan.round)
        if event.status is Status.CRC:
            return [refuse]  # the link's fault as likely as the participant's
        return [self._invalid(self.plan.round, event.id, f"{_word(event.status)}: {event.reason}"), refuse]

    def _invalid(self, number: int, who: str, reason: str) -> JournalVerdict:
        return JournalVerdict(number, self._quarantine.invalid(number, who, reason))

    def _refused(self, event: Refused) -> list[Action]:
        progress = self._progress.get(event.id)
        masking = self._masking_of(event.id)
        if self.plan is None or progress is None:
            return []
        note = NoteRefusal(event.id, event.status, event.reason, self.plan.round)
        if masking is not None and event.id in masking.silent():
            if event.handle is None:
                masking.lose(event.id)  # it gives no shares
            return [DropPull(event.id), note]
        if progress.is_settled:
            return []
        if event.handle is not None and progress.report is not None and event.handle == progress.report.handle:
            self._rest(progress)
            return [DropPull(event.id), note]  # it forgot the blob: it will report, or say hello, again
        if event.handle is None:
            progress.fail(f"refused the plan: {_word(event.status)}")
        return [note]

    def _rest(self, progress: Progress) -> None:
        """What a participant was sending is not on its way any more."""
        is_keyed = self._masking is not None and self._masking.has_keys(progress.member.id)
        progress.step, progress.report = Step.KEYED if is_keyed else Step.TRAINING, None

    def _pulling(self, who: str, handle: int) -> Progress | None:
        progress = self._progress.get(who)
        if progress is None or progress.step is not Step.SENDING or progress.report is None or self._is_closing:
            return None
        return progress if progress.report.handle == handle else None

    # ---- closing -----------------------------------------------------------------------------------------------------

    def _goal(self) -> int:
        return self._goal_of(len(self._progress))

    def _needed(self) -> int:
        return self._needed_of(len(self._progress))

    def _goal_of(self, num_expected: int) -> int:
        goal = self.rules.windows.goal_count
        return num_expected if goal is None else min(goal, num_expected)

    def _needed_of(self, num_expected: int) -> int:
        # The small subtraction keeps 0.55 * 100 at 55, not at 56.
        return max(1, math.ceil(self.rules.windows.min_fraction * self._goal_of(num_expected) - 1e-9))

    def _close_if_over(self, now: float) -> list[Action]:
        if self.plan is None or self._is_closing or self._is_done:
            return []
        if self._masking is not None and self._is_unmasking:
            return self._unmask(self._masking, now)
        actions = [] if self._masking is None else self._end_keys_if_over(self._masking, now)
        if not self._unsettled or self.num_counted >= self._goal() or now >= self._leases.end(self._unsettled):
            return [*actions, *self._end_round(now)]
        return actions

    def _end_round(self, now: float) -> list[Action]:
        """Ask for what takes the masks off, or close the round, or abandon it where too few reported."""
        if self.num_counted >= self._needed() and self._masking is not None:
            survivors = [who for who in self.counted() if self._masking.is_member(who)]
            if survivors:
                return self._begin_unmasking(self._masking, survivors, now)
        return self._close_or_abandon(now)

    def _close_or_abandon(self, now: float) -> list[Action]:
        if self.num_counted < self._needed():
            return self._abandon(f"{self.num_counted} of {len(self._progress)} reported, {self._needed()} are needed", now)
        self._is_closing = True
        missing = self.missing()
        return [*self._send_away(), *self._close(missing)]

    def _close(self, missing: Mapping[str, str]) -> list[Action]:
        self._is_merging = True
        return [] if self.plan is None else [CloseRound(self.plan, missing)]

    def _send_away(self) -> list[Action]:
        """Whoever is still sending is told that the round is over."""
        return [action for progress in self._progress.values() for action in self._turn_away(progress)]

    def _turn_away(self, progress: Progress) -> list[Action]:
        assert self.plan is not None  # callers looked
        if progress.report is None:
            return []
        who, handle = progress.member.id, progress.report.handle
        self._rest(progress)
        return [DropPull(who), SendRefuse(who, Status.STALE_ROUND, "the round is over", handle, self.plan.round)]

    # ---- masked sums -------------------------------------------------------------------------------------------------

    @property
    def _is_unmasking(self) -> bool:
        return self._masking is not None and self._masking.step is MaskStep.SHARES

    def _round_wakes_at(self) -> float:
        """When the open round has something to do if nothing is heard."""
        if self._masking is None:
            return self._leases.end(self._unsettled)
        match self._masking.step:
            case MaskStep.KEYS:
                return min(self._masking.keys_end(), self._leases.end(self._unsettled))
            case MaskStep.UPDATE:
                return self._leases.end(self._unsettled)
            case MaskStep.SHARES:
                return self._masking.shares_end

    def _end_keys_if_over(self, masking: Masking, now: float) -> list[Action]:
        """Fix whose keys came, and give them to each other."""
        is_waiting = any(who in self._unsettled and not masking.has_keys(who) for who in masking.group.numbers)
        if self.plan is None or masking.step is not MaskStep.KEYS or (is_waiting and now < masking.keys_end()):
            return []
        masking.end_keys()
        actions: list[Action] = [EndMaskStep(self.plan.round, MaskStep.KEYS), *self._leave_out_keyless(masking)]
        keyed = [self._progress[who] for who in masking.keyed if who in self._unsettled]
        return actions + [self._masked_plan(masking, progress, now) for progress in keyed]

    def _leave_out_keyless(self, masking: Masking) -> list[Action]:
        """Await nothing of those whose keys did not come, nor of anybody where these were too many."""
        actions: list[Action] = []
        reason = masking.too_few_keys()
        for who in sorted(masking.group.numbers):
            progress = self._progress[who]
            if progress.is_settled or (masking.has_keys(who) and reason is None):
                continue
            actions += self._turn_away(progress)
            progress.fail(reason or "its keys did not come in time")
            self._settle(who)
        return actions

    def _begin_unmasking(self, masking: Masking, survivors: Sequence[str], now: float) -> list[Action]:
        """Fix whose masked updates came, and ask these for shares."""
        assert self.plan is not None  # callers looked
        actions: list[Action] = [*self._send_away(), EndMaskStep(self.plan.round, MaskStep.UPDATE)]
        masking.begin_shares(survivors, now)
        complaint = masking.too_few(survivors)
        if complaint is not None:
            return [*actions, *self._leave_out(masking, complaint, now)]
        return actions + [self._masked_plan(masking, self._progress[who], now) for who in masking.silent()]

    def _unmask(self, masking: Masking, now: float) -> list[Action]:
        """Close the round once the masks can be taken off, or never will be."""
        complaint = masking.complaint()
        if complaint is None:
            return [*(DropPull(who) for who in masking.silent() if masking.pulled(who)), *self._close_or_abandon(now)]
        is_over = not masking.silent() or now >= masking.shares_end or masking.too_few(masking.survivors) is not None
        return self._leave_out(masking, complaint, now) if is_over else []

    def _leave_out(self, masking: Masking, complaint: str, now: float) -> list[Action]:
        """No sum comes of the masked updates: none of them counts."""
        for who in masking.survivors:
            self._progress[who].fail(f"its masked sum is left out: {complaint}")
        self.num_counted -= len(masking.survivors)
        return self._close_or_abandon(now)

    def _abandon(self, reason: str, now: float) -> list[Action]:
        assert self.plan is not None  # callers looked
        missing = self.missing()
        actions = [*self._send_away(), AbandonRound(self.plan, reason, missing)]
        self._num_failed += 1
        number = self.plan.round
        self._leave_round(is_committed=False, now=now)
        if self._num_failed >= self.rules.windows.max_failed_rounds:
            actions.append(self._give_up(f"the last one, round {number}: {reason}", now))
        return actions

    def _give_up(self, last: str, now: float) -> Action:
        failed = "round failed" if self._num_failed == 1 else f"{self._num_failed} rounds in a row failed"
        if self.rules.windows.after_failures == "pause":
            return self._pause(f"{failed}; {last}", now)
        self._is_done = True
        return Stop(f"{failed}; {last}")

    def _leave_round(self, is_committed: bool, now: float) -> None:
        assert self.plan is not None  # callers looked
        # A round that nobody joined says nothing about cells: the next one is planned as if it had not been.
        if self.plan.members:
            self._previous = Previous(self.plan.phase, self.plan.cells, is_committed)
        elif self._previous is not None:
            self._previous = Previous(self.plan.phase, self._previous.cells, is_committed)
        self._begin_selection(now)


def _unmasked(report: Reported) -> tuple[Status, str] | None:
    """Why a report of somebody whose update is not masked cannot be taken, or None."""
    if report.mask_step is None:
        return None
    return Status.NOT_EXPECTED, f"step {int(report.mask_step)} of a masked round, and this update is not to be masked"


def _word(status: Status) -> str:
    return status.name.lower().replace("_", "-")
