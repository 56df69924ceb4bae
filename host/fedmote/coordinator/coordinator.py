# SPDX-License-Identifier: Apache-2.0
"""The coordinator: asyncio around the round machine.

    transports --> inbox --> event --> machine --> actions --> store, transports
                     ^                                |
                     +--- merge, in a thread <--------+

One task reads each transport into one inbox; everything else happens in one task, message by message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fedmote.config import CoordinatorConfig
from fedmote.coordinator.exchange import sound_blob
from fedmote.coordinator.forms import Partition
from fedmote.coordinator.results import RunResult
from fedmote.coordinator.run import Run, Talk
from fedmote.coordinator.security import Security
from fedmote.errors import DiskFullError, LocalWireError, RemoteWireError, TransportError
from fedmote.package.difference import FORMAT
from fedmote.rounds import RunStatus
from fedmote.rounds.events import (
    BlobArrived,
    BlobSpoiled,
    Doubled,
    Event,
    Refused,
    Reported,
    Revoked,
    SaidHello,
    SentChunk,
    TookPlan,
)
from fedmote.store import Checkpoint, State
from fedmote.store.durable import has_space
from fedmote.transport import Received, Transport
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_PROTOCOL, Channel, Kind, Role, Status
from fedmote.wire.transfer import BlobSink

log = logging.getLogger(__name__)

# Between two words for the operator while nothing ends.
TALK_S = 10.0
# A merge under way when the run is stopped may take so long; one that is not done is done at the next start.
STOP_S = 0.5
# While the disk is full, it is looked at so often, for room for two checkpoints and the ledger's pages. One that is full again so
# soon after it had space was not freed: the same wait goes on.
LOOK_S = 2.0
SPARE_BYTES = 256 * 1024
FREED_S = 10.0
# Messages that wait for us; transports stop reading when it is full.
INBOX_MESSAGES = 1024
# A no to these says that the plan cannot be done, even if it does not name the round.
_PLAN_REFUSALS = frozenset(status for status in Status if Status.PACKAGE_MAGIC <= status <= Status.NO_SAMPLES)
_NUMBERS = ("discarded", "trained", "sent", "loss_micro", "loss_after_micro", "arena_used_bytes")


class Coordinator:
    """One run, from start or where it stopped, to its goal or until `stop`.

    Args:
        config: the whole configuration.
        transports: ways to participants; several at once are one fleet.
        partition: the converted model.
        is_fresh: set an earlier run aside instead of going on with it.
        talk: takes lines for the operator.
        tell: takes the run's status from time to time; `talk` takes its words where None.
        clock: monotonic seconds.
        passing: called with the name of every place at which a kill must do no harm; `crash.PLACES` has them.
        security: the keys, whose seals the transports have; none: messages prove nothing.

    Attributes:
        is_stopping: `stop` was called.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        transports: Sequence[Transport],
        partition: Partition,
        *,
        is_fresh: bool = False,
        talk: Talk | None = None,
        tell: Callable[[RunStatus], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        passing: Callable[[str], None] | None = None,
        security: Security | None = None,
    ) -> None:
        self.config = config
        self._transports = tuple(transports)
        self._partition = partition
        self._is_fresh = is_fresh
        self._talk = talk or log.info
        self._tell = tell or (lambda status: self._talk(status.words()))
        self._clock = clock
        self._passing = passing or (lambda place: None)
        self._inbox: asyncio.Queue[tuple[Transport, Received] | None] = asyncio.Queue(INBOX_MESSAGES)
        self._started: list[Transport] = []
        self._readers: list[asyncio.Task[None]] = []
        self._full_until = self._went_on_at = -math.inf
        self._failure: Exception | None = None
        self._num_reading = 0
        self.is_stopping = False
        self._talk_at = 0.0
        self._stop_at = math.inf
        self._security = security
        if security is not None:
            security.end.on_refusal = self._wake

    def stop(self) -> None:
        """End after the action under way, and a merge that ends soon. Everything that counts is journaled already."""
        self.is_stopping = True
        self._stop_at = self._clock() + STOP_S
        self._wake()

    def _wake(self) -> None:
        """Let the loop look around."""
        if self._inbox.empty():
            self._inbox.put_nowait(None)

    async def run(self) -> RunResult:
        """Run.

        Returns:
            The result; `is_complete` is false after `stop` or where the run had to be given up, with the complaint.

        Raises:
            ConfigError: the configuration contradicts itself, the partition, or the run in the state directory.
            DiskFullError: the disk is full, and no space was freed for `full_disk_wait_s`. What was written is sound.
            StoreError: the state directory failed. What it holds is sound: start again once that is mended.
            TransportError: no transport works.
        """
        try:
            while True:
                try:
                    return await self._go_on()
                except DiskFullError as error:
                    await self._wait_for_space(error)
        finally:
            for reader in self._readers:
                reader.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)
            for transport in self._started:
                await transport.close()

    async def _go_on(self) -> RunResult:
        """Run from what the state directory holds; DiskFullError leaves it as a kill would."""
        with State.open(self.config.run.state_directory, self._is_fresh) as state:
            self._is_fresh = False  # what was set aside stays aside when this is called again
            sign = None if self._security is None else self._security.signer
            run = Run(self.config, state, self._partition, self._clock, self._talk, self._passing, sign)
            try:
                await self._start()
                await self._loop(run)
                if self._security is not None:
                    self._note_refusals(run, self._security.end.take_refusals())
            finally:
                if run.merge_task is not None:
                    run.merge_task.cancel()
            return run.result()

    async def _start(self) -> None:
        """Start the transports, once."""
        if self._readers:
            return
        for transport in self._transports:
            self._started.append(transport)
            await transport.start()
            if isinstance(transport, LinkServer):
                self._talk(f"listening at {transport.url}")  # port 0 became a free one
        self._readers = [asyncio.create_task(self._read(transport)) for transport in self._transports]
        self._num_reading = len(self._readers)
        if self._security is None:
            self._talk("messages are not authenticated: whoever reaches the broker or the port can speak for a participant")

    # ---- a full disk ----------------------------------------------------------------------------------------------------

    async def _wait_for_space(self, error: DiskFullError) -> None:
        """Return as soon as there is space in the state directory.

        Raises:
            DiskFullError: `error`, where none was freed in time, or the run is to stop.
            TransportError: no transport works any more.
        """
        now, wait_s = self._clock(), self.config.run.full_disk_wait_s
        if now - self._went_on_at > FREED_S:
            self._full_until = now + wait_s
            if wait_s > 0:
                self._talk(
                    f"paused: {error.path}: the disk is full; nothing that was written is damaged: free space within "
                    f"{wait_s:g} s, and the run goes on by itself"
                )
        needed = SPARE_BYTES + 2 * len(Checkpoint(0, 0, *self._partition.first_model()).to_bytes())
        directory = self.config.run.state_directory
        while now < self._full_until and not self.is_stopping:
            await self._put_off(min(self._full_until, now + LOOK_S))
            now = self._clock()
            if has_space(directory if directory.is_dir() else directory.parent, needed):
                self._went_on_at = now
                self._talk("the disk has space again: the run goes on")
                return
        raise error

    async def _put_off(self, until: float) -> None:
        """Answer hellos with `wait`, and nothing else: participants repeat whatever is not answered."""
        while (left := until - self._clock()) > 0 and not self.is_stopping:
            if self._failure is not None and self._num_reading == 0:
                raise self._failure
            try:
                async with asyncio.timeout(left):
                    waiting = await self._inbox.get()
            except TimeoutError:
                return
            if waiting is None or waiting[1].channel is not Channel.COORDINATOR or waiting[1].message.kind is not Kind.HELLO:
                continue
            transport, received = waiting
            with contextlib.suppress(LocalWireError):  # it will ask again
                answer = Message.of(Kind.WAIT, wait_ms=int(1000 * LOOK_S), reason="the disk of the coordinator is full")
                await transport.send(received.id, Channel.COORDINATOR, answer)

    # ---- inbox --------------------------------------------------------------------------------------------------------

    async def _read(self, transport: Transport) -> None:
        try:
            while True:
                await self._inbox.put((transport, await transport.receive()))
        except TransportError as error:
            log.warning("transport failed: %s", error)
            self._num_reading -= 1
            self._failure = self._failure or error
            await self._inbox.put(None)
        except Exception as error:  # our bug: a coordinator that no longer listens must not look like one that does
            self._num_reading = 0
            self._failure = error
            await self._inbox.put(None)

    async def _loop(self, run: Run) -> None:
        await run.perform(run.machine.tick(self._clock()))
        while not run.is_over and not (self.is_stopping and (run.merge_task is None or self._clock() >= self._stop_at)):
            if self._failure is not None and self._num_reading == 0:
                raise self._failure
            await self._wait(run)
            while not self._inbox.empty() and not run.is_over:
                waiting = self._inbox.get_nowait()
                if waiting is not None:
                    await self._receive(run, *waiting)
            if run.merge_task is not None and run.merge_task.done():
                await run.merged(run.merge_task.result())
            await self._pass_time(run)

    async def _wait(self, run: Run) -> None:
        """Until a message, the end of a merge, or the next deadline."""
        if not self._inbox.empty():
            return
        wake_at = min(run.machine.wake_at(), run.exchange.wake_at(), self._talk_at, self._stop_at)
        reading = asyncio.create_task(self._inbox.get())
        if self._security is not None:
            wake_at = min(wake_at, self._security.guard_at())
        waiting: set[asyncio.Future[Any]] = {reading}
        if run.merge_task is not None:
            waiting.add(run.merge_task)
        await asyncio.wait(waiting, timeout=max(0.0, wake_at - self._clock()), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            reading.cancel()
        elif (message := reading.result()) is not None:
            await self._receive(run, *message)

    async def _pass_time(self, run: Run) -> None:
        now = self._clock()
        await run.exchange.poll(now)
        if self._security is not None and not run.is_over:
            await self._guard(run, self._security, now)
        if now >= run.machine.wake_at() and not run.is_over:
            await run.perform(run.machine.tick(now))
        if now >= self._talk_at:
            if self._talk_at and not run.is_over:
                self._tell(run.machine.status(now))
            self._talk_at = now + TALK_S

    # ---- keys ---------------------------------------------------------------------------------------------------------

    async def _guard(self, run: Run, security: Security, now: float) -> None:
        """Act on what the keys tell: second boards at once, withdrawn keys and counts once a second."""
        for who in security.end.take_doubles():
            await self._handle(run, Doubled(who))
        if now < security.guard_at():
            return
        revoked, refusals = security.news(now)
        self._note_refusals(run, refusals)
        for line in security.complaints(refusals):
            self._talk(line)
        for who in revoked:
            self._talk(f"{who}: its key was revoked")
            for transport in self._transports:
                if isinstance(transport, LinkServer):
                    transport.disconnect(who)
            await self._handle(run, Revoked(who))

    def _note_refusals(self, run: Run, refusals: Counter[tuple[str, Status]]) -> None:
        number = run.machine.plan.round if run.machine.plan is not None else 0
        for (who, status), count in sorted(refusals.items()):
            run.state.ledger.add_refusal(number, who, "coordinator", status, "message not believed", count)

    # ---- messages -----------------------------------------------------------------------------------------------------

    async def _receive(self, run: Run, transport: Transport, received: Received) -> None:
        if received.channel is not Channel.COORDINATOR:
            log.warning("cell message from %s reached the coordinator; access lists should keep it away", received.id)
            return
        who, message = received.id, received.message
        if message.kind is Kind.STATE:  # retained, never sealed, and so believed nothing
            log.info("state id=%s is_online=%d", who, message["is_online"])
            return
        run.exchange.heard(who, transport)
        match message.kind:
            case Kind.HELLO:
                await self._hello(run, who, message)
            case Kind.GET:
                await self._get(run, who, message)
            case Kind.DATA:
                await self._data(run, who, message)
            case Kind.REPORT:
                await self._handle(run, _reported(run, who, message))
            case Kind.REFUSE:
                await self._refused(run, who, message)
            case _:
                log.warning("unexpected %s from %s", message.kind.name.lower(), who)

    async def _handle(self, run: Run, event: Event) -> None:
        await run.perform(run.machine.handle(event, self._clock()))

    async def _hello(self, run: Run, who: str, hello: Message) -> None:
        complaint = _hello_complaint(run, who, hello)
        if complaint is not None:
            await run.refuse_stranger(who, *complaint)
            return
        if self._security is not None and (rekey := self._security.offer(who, hello["boot"], self._clock())) is not None:
            await run.exchange.send(who, rekey)
            if self._security.is_not_taken(who):
                self._talk(f"{who}: does not take its new key: does its firmware name fedmote_renewable_sealing?")
            return
        base = hello.get("model_hash") if hello.get("difference_format") == FORMAT else None
        run.exchange.knows(who, hello["board"], hello["max_body"], base)
        await self._handle(run, SaidHello(who, Role(hello["role"]), hello["boot"], hello["board"]))

    async def _get(self, run: Run, who: str, get: Message) -> None:
        if not run.machine.is_member(who):
            await run.refuse_stranger(who, Status.NOT_EXPECTED, "no plan, no blobs", get["handle"])
            return
        if not run.exchange.is_offered(get["handle"]):
            await run.offer_everything()
        if run.exchange.is_offered(get["handle"]):
            await self._handle(run, TookPlan(who))
        await run.exchange.answer(who, get)

    async def _data(self, run: Run, who: str, data: Message) -> None:
        sink = await run.exchange.accept(who, data, self._clock())
        if sink is not None:
            await self._handle(run, self._arrived(run, who, sink))
        elif run.exchange.is_pulling(who, data["handle"]):
            await self._handle(run, SentChunk(who))

    def _arrived(self, run: Run, who: str, sink: BlobSink) -> Event:
        """Check a complete update, and store it where it is sound."""
        blob = sound_blob(sink)
        if isinstance(blob, RemoteWireError):
            return BlobSpoiled(who, sink.handle, blob.status, str(blob))
        try:
            decoded = run.merging.strategy.codec.decode(run.machine.role_of(who), blob, run.merging.model)
        except RemoteWireError as error:
            return BlobSpoiled(who, sink.handle, error.status, str(error))
        is_empty = not decoded.tensors and not decoded.ranges
        if is_empty and run.machine.claimed_examples(who) > 0:  # that of a partner without samples is empty
            return BlobSpoiled(who, sink.handle, Status.UPDATE_SHAPE, "examples, and nothing that was learned from them")
        self._passing("update-decoded")
        content = run.state.blobs.put(blob)
        self._passing("blob-stored")
        return BlobArrived(who, sink.handle, content)

    async def _refused(self, run: Run, who: str, message: Message) -> None:
        plan, status = run.machine.plan, Status(message["status"]) if message["status"] in set(Status) else Status.STATE
        handle, reason = message.get("handle"), message.get("reason", "")
        if handle is not None and run.exchange.is_pulling(who, handle):
            await self._handle(run, Refused(who, status, handle, reason))
            return
        if handle is not None and run.machine.is_member(who) and not run.exchange.is_offered(handle):
            await run.offer_everything()  # before a restart it may have been
        if handle is not None and run.exchange.name_of(handle) == "difference":
            run.difference_lost(who, handle, status)
            return
        is_of_round = plan is not None and message.get("round") == plan.round and message.get("run") == run.name
        if is_of_round or ("round" not in message and status in _PLAN_REFUSALS):
            await self._handle(run, Refused(who, status, None, reason))


def _hello_complaint(run: Run, who: str, hello: Message) -> tuple[Status, str] | None:
    """Why a hello cannot be taken, or None."""
    if hello["protocol"] != LIMIT_PROTOCOL:
        return Status.PROTOCOL, f"protocol {hello['protocol']}, we speak {LIMIT_PROTOCOL}"
    if hello["device"] != who:
        return Status.NOT_EXPECTED, f"the link is that of {who}"
    if hello["role"] == Role.DEVICE and hello["board"] not in run.boards:
        return Status.NOT_EXPECTED, f"no package for board {hello['board']}"
    return None


def _reported(run: Run, who: str, report: Message) -> Reported:
    return Reported(
        id=who,
        handle=report["handle"],
        size=report["size"],
        crc=report["crc"],
        run=report["run"],
        round=report["round"],
        version=report["version"],
        num_examples=report["num_examples"],
        attempt=report.get("attempt"),
        max_examples=run.max_examples(who) if run.machine.is_member(who) else 0,
        numbers={name: report.fields[name] for name in _NUMBERS if name in report},  # type: ignore[misc]  # all are integers
    )
