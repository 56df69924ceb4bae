# SPDX-License-Identifier: Apache-2.0
"""What a masked round's journal says to its members: the word in their plans, and the peers blobs."""

from __future__ import annotations

import zlib

from fedmote.privacy.secure_sum import Collector
from fedmote.rounds.events import MaskStep
from fedmote.store import State
from fedmote.strategies import RoundPlan
from fedmote.wire.masking import Word
from fedmote.wire.transfer import BlobSource, handle_of


class MaskedForms:
    """Words and blobs of the open round, made from the journal when somebody needs them.

    Args:
        state: of the run.
        run: its random name, 8 bytes.
    """

    def __init__(self, state: State, run: bytes) -> None:
        self._state = state
        self._run = run
        self._peers: tuple[int, dict[str, bytes]] = (0, {})  # with their round, as the survivors
        self._survivors: tuple[int, frozenset[int]] = (0, frozenset())

    def word(self, plan: RoundPlan, who: str, step: MaskStep) -> tuple[Word, list[BlobSource]]:
        """What a member's plan says in a step, and what the member will ask for."""
        group = plan.masked
        assert group is not None  # the machine asks for masked members alone
        if step is MaskStep.KEYS:
            return Word(group.id, group.clip_norm, int(step)), []
        blob = self._peers_of(plan)[who]
        survivors = 0
        if step is MaskStep.SHARES:
            survivors = Collector(group.ring, self._run, plan.round).survivor_bits(group.numbers[who], self._survivors_of(plan))
        peers = (handle_of(blob), len(blob), zlib.crc32(blob))
        return Word(group.id, group.clip_norm, int(step), survivors, peers), [_source(blob)]

    def sources(self, plan: RoundPlan) -> list[BlobSource]:
        """Everything that the round's members may ask for by now."""
        if plan.masked is None or MaskStep.KEYS not in self._state.ledger.ended_mask_steps(plan.round):
            return []
        return [_source(blob) for blob in self._peers_of(plan).values()]

    def _peers_of(self, plan: RoundPlan) -> dict[str, bytes]:
        """The peers blobs of all whose keys came: fixed once that step is over."""
        group = plan.masked
        assert group is not None  # the caller looked
        if self._peers[0] != plan.round:
            entries = self._state.ledger.mask_blobs(plan.round, MaskStep.KEYS)
            blobs = {one.participant: self._state.blobs.get(one.content) for one in entries}
            keys = {group.numbers[who]: blob for who, blob in blobs.items()}
            collector = Collector(group.ring, self._run, plan.round)
            self._peers = plan.round, {who: collector.peers(group.numbers[who], keys) for who in blobs}
        return self._peers[1]

    def _survivors_of(self, plan: RoundPlan) -> frozenset[int]:
        """Numbers of the members whose masked updates came: fixed once that step is over, so read once, not for each of them."""
        assert plan.masked is not None  # the caller looked
        if self._survivors[0] != plan.round:
            numbers, entries = plan.masked.numbers, self._state.ledger.updates(plan.round)
            self._survivors = plan.round, frozenset(numbers[one.participant] for one in entries if one.participant in numbers)
        return self._survivors[1]


def _source(blob: bytes) -> BlobSource:
    return BlobSource(handle_of(blob), blob, "peers")
