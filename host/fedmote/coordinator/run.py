# SPDX-License-Identifier: Apache-2.0
"""One run: performs what the round machine asks for, on the store and on the wire.

Order is everything here. Actions are performed one after the other; what a later one tells a participant, an earlier one
has made durable. Between any two of them the process may be killed: the `passing` hook names every such place, and the
tests kill it at each. What is lost then is at most work of participants, who report or say hello again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fedmote.aggregation import Finding
from fedmote.background import in_background
from fedmote.config import CoordinatorConfig
from fedmote.coordinator.claim import claims
from fedmote.coordinator.conduct import journaled
from fedmote.coordinator.exchange import Exchange, clip, refuse
from fedmote.coordinator.forms import Forms, Partition, Sign
from fedmote.coordinator.masked import MaskedForms
from fedmote.coordinator.merging import Inputs, Merging, has_same_encoder, load_or_replay
from fedmote.coordinator.results import RunResult, refusals, round_result, round_results
from fedmote.coordinator.resume import standing_of
from fedmote.errors import ConfigError, ConversionError, FedmoteError, PackageError, RoundError
from fedmote.privacy.accountant import load_library
from fedmote.privacy.group import MaskedGroup
from fedmote.rounds import MaskedRules, RoundMachine, Rules
from fedmote.rounds.events import (
    AbandonRound,
    Action,
    CloseRound,
    DropPull,
    EndMaskStep,
    JournalMaskBlob,
    JournalPlan,
    JournalQuarantine,
    JournalUpdate,
    JournalVerdict,
    NoteRefusal,
    OpenRound,
    Pause,
    Pull,
    Resume,
    SendAck,
    SendPlan,
    SendRefuse,
    SendWait,
    Stop,
)
from fedmote.store import (
    Checkpoint,
    CheckpointEntry,
    MaskBlobEntry,
    PlanEntry,
    PrivacyEntry,
    QuarantineEntry,
    RunEntry,
    State,
    UpdateEntry,
)
from fedmote.store.checkpoints import file_hash
from fedmote.strategies import cells_of, leakage_warning, load_strategy
from fedmote.wire.blobs import masked_update_bytes
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind, Role, Status

# Lines per round about updates that came: a thousand participants are no reason for a thousand lines.
_PROGRESS_LINES = 10

Talk = Callable[[str], None]
Merged = tuple[Checkpoint, float | None, tuple[Finding, ...]] | FedmoteError


class Run:
    """A run in an open state directory.

    Attributes:
        machine: the rounds.
        exchange: messages and blobs.
        merging: how a round is merged.
        merge_task: the merge under way, if any; its end is handed to `merged`.
        is_over, complaint: whether the run has ended, and what it lacks.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        state: State,
        partition: Partition,
        clock: Callable[[], float],
        talk: Talk,
        passing: Callable[[str], None],
        sign: Sign | None = None,
        group: MaskedGroup | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self.exchange = Exchange(config.run.max_pulls_at_once)
        self.merge_task: asyncio.Future[Merged] | None = None
        self.is_over = False
        self.complaint: str | None = None
        self._partition = partition
        self._clock = clock
        self._talk = talk
        self._passing = passing
        self._sign = sign
        self._group = group
        self._opened_at = clock()
        if state.ledger.damage is not None:
            talk(state.ledger.damage)
        warning = leakage_warning(config.strategy)
        if warning is not None:
            talk(f"warning: {warning}")
        entry = self._begin_or_resume()
        self.name = entry.name
        self.checkpoint = Checkpoint(0, 0, *partition.first_model())
        self.merging = Merging(
            load_strategy(config.strategy, cells_of(config.cells)),
            partition.shape(self.checkpoint.tensors, self.checkpoint.ranges),
            state.blobs,
            entry.name,
            self._noise_key(),
        )
        self._refuse_another_model()
        self._show_newest()
        self.machine = RoundMachine(self._rules(), standing_of(state.ledger), clock(), self.exchange.waiting)
        self._masked = MaskedForms(state, entry.name)
        self._recall_peers()

    # ---- beginning ----------------------------------------------------------------------------------------------------

    def _begin_or_resume(self) -> RunEntry:
        strategy = json.dumps(asdict(self.config.strategy), sort_keys=True)
        found = self.state.ledger.run()
        if found is None:
            return self._begin(RunEntry(os.urandom(8), self.config.run.seed, strategy))
        if (found.seed, found.strategy) != (self.config.run.seed, strategy):
            raise ConfigError(
                f"{self.state.directory}: the run was begun with seed {found.seed} and strategy {found.strategy}; "
                "restore them in the configuration to go on, or start anew with --fresh"
            )
        self._talk(f"going on with run {found.name.hex()} in {self.state.directory}")
        return found

    def _begin(self, run: RunEntry) -> RunEntry:
        tensors, ranges = self._partition.first_model()
        digest = self.state.checkpoints.save(Checkpoint(0, 0, tensors, ranges))
        self._passing("first-checkpoint-written")
        self.state.ledger.begin_run(run, CheckpointEntry(0, 0, digest, 0, self._partition.evaluate(tensors, ranges, 0)))
        self._passing("run-begun")
        return run

    def _noise_key(self) -> bytes:
        """The run's secret for noise, drawn once; empty in a run without noise.

        Raises:
            ConfigError: noise is asked for, and the accountant that would say what it is worth is not installed.
        """
        if self.config.strategy.privacy is None:
            return b""
        load_library()
        found = self.state.ledger.privacy()
        if found is None:
            cells = [cell for cell in self.config.cells if cell.devices]
            sizes = [len(cell.devices) for cell in cells]
            found = PrivacyEntry(os.urandom(32), sum(sizes), len(cells), max(sizes))
            self.state.ledger.begin_privacy(found)
            self._passing("privacy-begun")
        return found.noise_key

    def _refuse_another_model(self) -> None:
        """By the hash of the first checkpoint: another conversion of the same module reads samples in other ranges."""
        first = self.state.ledger.checkpoints()[0]
        if file_hash(self.checkpoint.to_bytes()) != first.hash:
            raise ConfigError(
                f"{self.state.directory}: the run there began with another model or conversion than the one in "
                f"{self.config.run.partition_directory}; point to its partition directory, or start anew with --fresh"
            )

    def _show_newest(self) -> None:
        entries = {entry.version: entry for entry in self.state.ledger.checkpoints()}
        newest = entries[max(entries)]

        def load(version: int) -> Checkpoint:
            entry = next(one for one in self.state.ledger.checkpoints() if one.version == version)
            return load_or_replay(self.state, self.merging, entry)[0]

        self.checkpoint, is_mended = load_or_replay(self.state, self.merging, newest)
        if is_mended:
            self._talk(f"checkpoint {newest.version} was missing or damaged: computed again from the journal, byte for byte")
        self._encoder_version = newest.encoder_version
        self._forms = Forms(self._partition, load, self._sign)
        self._forms.show(self.checkpoint, self._encoder_versions())

    def _encoder_versions(self) -> list[int]:
        """Of all committed checkpoints, ascending: each was packed for devices."""
        return sorted({entry.encoder_version for entry in self.state.ledger.checkpoints()})

    def _rules(self) -> Rules:
        codec, model = self.merging.strategy.codec, self.merging.model
        return Rules(
            self.name,
            self.config.run.rounds,
            self.config.run.seed,
            cells_of(self.config.cells),
            self.config.windows,
            self.merging.strategy,
            lambda role: codec.max_bytes(role, model),
            self.config.quarantine,
            self.config.strategy.min_examples,
            self._masked_rules(),
        )

    def _masked_rules(self) -> MaskedRules | None:
        """How updates are summed under masks.

        Raises:
            ConfigError: the configuration names a group, and nobody gave it, or too few of it are in this run.
        """
        config = self.config.strategy.secure_sum
        if config is None:
            return None
        if self._group is None:
            raise ConfigError(f"strategy.secure_sum.group: {config.group} is in the fleet's registry; name it in [security]")
        here = {device for cell in self.config.cells for device in cell.devices}
        numbers = {who: number for who, number in self._group.numbers.items() if who in here}
        least = self._group.ring.least_members
        if len(numbers) < least:
            raise ConfigError(
                f"strategy.secure_sum.group: {len(numbers)} devices of {config.group} are in this run, {least} are needed to "
                "hide one among them"
            )
        return MaskedRules(
            replace(self._group, numbers=numbers),
            config.keys_fraction,
            config.shares_fraction,
            masked_update_bytes(self.merging.model.num_head_parameters),
        )

    def _recall_peers(self) -> None:
        """Board and body size of those who have a plan: they may go on without another hello."""
        plan = self.machine.plan
        if plan is None:
            return
        for who, entry in self.state.ledger.plans(plan.round).items():
            self.exchange.knows(who, entry.board, entry.max_body, entry.base)
        self._talk(self.machine.words(self._clock()))

    @property
    def boards(self) -> tuple[str, ...]:
        """Boards that a device may have."""
        return self._partition.boards

    def max_examples(self, who: str) -> int:
        """The largest weight that is believed of a member: what its board can hold, or what the configuration allows partners."""
        if self.machine.role_of(who) is Role.PARTNER:
            return self.config.strategy.partner_max_examples
        board = self.exchange.peers[who].board
        return self._partition.max_samples(board) if board in self.boards else 0

    async def offer_everything(self) -> None:
        """A participant goes on pulling after a restart: offer whatever this round may have offered before."""
        for planned in self._forms.all_planned():
            self.exchange.offer(planned.sources())
        if self.machine.plan is not None:
            self.exchange.offer(self._masked.sources(self.machine.plan))
        for board, base in sorted({(peer.board, peer.base) for peer in self.exchange.peers.values() if peer.base is not None}):
            with contextlib.suppress(ConversionError, PackageError):  # a board without a package asks for none
                planned = await self._forms.with_difference(self._forms.planned(Role.DEVICE, board), board, base)
                self.exchange.offer(planned.sources())

    def difference_lost(self, who: str, handle: int, status: Status) -> None:
        """A device could not use a difference, and fetches the whole package."""
        number = self.machine.plan.round if self.machine.plan is not None else 0
        self.exchange.peers[who].lost.add(handle)
        self.state.ledger.add_refusal(number, who, "participant", status, "difference; the package was sent whole")
        self._talk(f"{who} could not use a difference ({status.name.lower().replace('_', '-')}): its package comes whole")

    # ---- actions ------------------------------------------------------------------------------------------------------

    async def perform(self, actions: Sequence[Action]) -> None:
        """Perform actions in order."""
        for action in actions:
            name = type(action).__name__
            self._passing(f"before {name}")
            await self._do(action)
            self._passing(f"after {name}")

    async def _do(self, action: Action) -> None:
        match action:
            case OpenRound() | JournalPlan() | JournalUpdate() | JournalVerdict() | JournalQuarantine() | NoteRefusal():
                self._journal(action)
            case JournalMaskBlob() | EndMaskStep():
                self._journal_masked(action)
            case SendPlan() | SendWait() | SendAck() | SendRefuse():
                await self._tell(action)
            case Pull():
                await self.exchange.pull(action.id, action.handle, action.size, action.crc, self._clock())
            case DropPull():
                self.exchange.drop(action.id)
            case CloseRound():
                self._close(action)
            case AbandonRound():
                self._abandon(action)
            case Pause():
                self._talk(
                    f"paused for {action.pause_s:.0f} s: {action.complaint}; the model stays, and the run goes on by itself"
                )
            case Resume():
                self._talk("enough participants are back: the run goes on")
            case Stop():
                self.is_over, self.complaint = True, action.complaint

    def _journal(
        self, action: OpenRound | JournalPlan | JournalUpdate | JournalVerdict | JournalQuarantine | NoteRefusal
    ) -> None:
        ledger = self.state.ledger
        match action:
            case OpenRound():
                ledger.open_round(action.plan, self.config.windows.report_s)
                self.exchange.begin_round()
                self._opened_at = self._clock()
                self._talk(
                    f"round {action.plan.round} ({action.plan.phase.name.lower()}): {len(action.plan.members)} participants"
                )
            case JournalPlan():
                peer = self.exchange.peers[action.id]
                entry = PlanEntry(action.id, action.attempt, action.boot, peer.board, peer.max_body, peer.base)
                ledger.add_plan(action.round, entry)
            case JournalUpdate():
                numbers = {**action.numbers, **self.exchange.served(action.id)}
                update = UpdateEntry(
                    action.id, action.role, action.attempt, action.num_examples, action.crc, action.content, numbers
                )
                ledger.add_update(action.round, update)
                if self.machine.num_counted % max(1, self.machine.num_expected // _PROGRESS_LINES) == 0:
                    self._talk(self.machine.words(self._clock()))
            case JournalVerdict():
                ledger.add_conduct(*journaled(action.round, [action.verdict]))
            case JournalQuarantine():
                ledger.add_conduct([], [QuarantineEntry(action.id, action.round, action.until, action.reason)])
                self._talk(f"{action.id} is left out until round {action.until}: {action.reason}")
            case NoteRefusal():
                ledger.add_refusal(action.round, action.id, "participant", action.status, clip(action.reason))
                self._talk(f"{action.id} refused: {action.status.name.lower().replace('_', '-')} {action.reason}".rstrip())

    def _journal_masked(self, action: JournalMaskBlob | EndMaskStep) -> None:
        match action:
            case JournalMaskBlob():
                blob = MaskBlobEntry(action.id, int(action.step), action.attempt, action.crc, action.content)
                self.state.ledger.add_mask_blob(action.round, blob)
            case EndMaskStep():
                self.state.ledger.end_mask_step(action.round, int(action.step))
                self._talk(self.machine.words(self._clock()))

    async def _tell(self, action: SendPlan | SendWait | SendAck | SendRefuse) -> None:
        match action:
            case SendPlan():
                await self._send_plan(action)
            case SendWait():
                await self.exchange.send(action.id, Message.of(Kind.WAIT, wait_ms=action.wait_ms, reason=clip(action.reason)))
            case SendAck():
                ack = Message.of(Kind.ACK, handle=action.handle, run=self.name, round=action.round)
                await self.exchange.send(action.id, ack)
            case SendRefuse():
                number = self.machine.plan.round if self.machine.plan is not None else 0
                self.state.ledger.add_refusal(number, action.id, "coordinator", action.status, clip(action.reason))
                answer = refuse(action.status, action.reason, action.handle, self.name, action.round)
                await self.exchange.send(action.id, answer)

    async def _send_plan(self, action: SendPlan) -> None:
        peer = self.exchange.peers[action.id]
        try:
            planned = self._forms.planned(action.role, peer.board)
        except (ConversionError, PackageError) as error:
            # One board's package must not stop the others: this participant waits, and is named as missing.
            self._talk(f"no plan for {action.id}: {error}")
            await self._tell(SendWait(action.id, self.config.windows.wait_ms, f"no package: {error}"))
            return
        if action.role is Role.DEVICE and peer.base is not None:
            offer = await self._forms.with_difference(planned, peer.board, peer.base)
            planned = planned if offer.fields().get("difference_handle") in peer.lost else offer
        self.exchange.offer(planned.sources())
        fields: dict[str, int | bytes | str] = {
            "run": self.name,
            "round": action.plan.round,
            "phase": action.plan.phase,
            "version": action.plan.version,
            "remaining_ms": int(1000 * action.remaining_s),
            "seed": action.plan.seed,
            "attempt": action.attempt,
        }
        if action.mask_step is not None:
            word, sources = self._masked.word(action.plan, action.id, action.mask_step)
            self.exchange.offer(sources)
            fields["masking"] = word.to_bytes()
        training = self.merging.strategy.plan.training(action.role)
        await self.exchange.send(action.id, Message(Kind.PLAN, fields | planned.fields() | training.fields()))

    async def refuse_stranger(self, who: str, status: Status, reason: str, handle: int | None = None) -> None:
        """Refuse what never reaches the machine, and count it like every other no."""
        await self.perform([SendRefuse(who, status, reason, handle)])

    # ---- closing a round ----------------------------------------------------------------------------------------------

    def _close(self, action: CloseRound) -> None:
        """Fix the set of updates, and merge beside the loop: hellos are answered meanwhile."""
        number = action.plan.round
        self.state.ledger.close_round(number, action.missing)
        self._passing("round-closed")
        inputs = Inputs.of(self.state.ledger, number)

        def merge() -> Merged:
            try:
                checkpoint, findings = self.merging.merge(self.checkpoint, inputs)
                accuracy = self._partition.evaluate(checkpoint.tensors, checkpoint.ranges, checkpoint.version)
                return checkpoint, accuracy, findings
            except FedmoteError as error:
                return error

        self.merge_task = in_background(merge)

    async def merged(self, outcome: Merged) -> None:
        """Commit a merge that is done, or abandon its round where the result is refused.

        Raises:
            FedmoteError: the store failed; the round stays closed, and is merged at the next start.
        """
        self.merge_task = None
        plan = self.machine.plan
        assert plan is not None  # the machine waits for this
        if isinstance(outcome, RoundError | ConversionError | PackageError):
            await self.perform(self.machine.spoiled(str(outcome), self._clock()))
            return
        if isinstance(outcome, FedmoteError):
            raise outcome
        self._passing("merge-computed")
        checkpoint, accuracy, findings = outcome
        digest = self.state.checkpoints.save(checkpoint)
        self._passing("checkpoint-written")
        is_same = has_same_encoder(self.checkpoint, checkpoint, self.merging.model.head)
        self._encoder_version = self._encoder_version if is_same else checkpoint.version
        entry = CheckpointEntry(checkpoint.version, plan.round, digest, self._encoder_version, accuracy)
        conduct, quarantines = journaled(plan.round, self.machine.judged(findings))
        self.state.ledger.commit_round(plan.round, entry, self._clock() - self._opened_at, conduct, quarantines)
        self._passing("round-committed")
        self.checkpoint = checkpoint
        self._forms.show(checkpoint, self._encoder_versions())
        self.exchange.withdraw()
        self._passing("checkpoint-shown")
        self._say_round(plan.round)
        await self.perform(self.machine.committed(checkpoint.version, self._clock()))

    def _abandon(self, action: AbandonRound) -> None:
        number = action.plan.round
        self.state.ledger.abandon_round(number, action.reason, self._clock() - self._opened_at, action.missing)
        self._say_round(number)

    def _say_round(self, number: int) -> None:
        ledger = self.state.ledger
        self._talk(round_result(ledger, ledger.rounds(number)[0], claims(ledger).get(number)).words())

    # ---- the end --------------------------------------------------------------------------------------------------------

    def result(self) -> RunResult:
        """Everything, from the ledger."""
        ledger = self.state.ledger
        entries = ledger.checkpoints()
        newest = entries[-1]
        privacy = claims(ledger)
        return RunResult(
            run=self.name.hex(),
            is_complete=self.is_over and self.complaint is None,
            complaint=self.complaint if self.is_over else self.machine.complaint,
            version=newest.version,
            checkpoint=str(self.state.checkpoints.path(newest.version)),
            accuracy=newest.accuracy,
            first_accuracy=entries[0].accuracy,
            rounds=tuple(round_results(ledger)),
            refusals=refusals(ledger),
            privacy=privacy[max(privacy)] if privacy else None,
        )
