# SPDX-License-Identifier: Apache-2.0
"""From the journal to a checkpoint: a pure function, so that a merge repeated after a crash gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmote.aggregation import Finding, Update
from fedmote.aggregation.ranges import Ranges
from fedmote.errors import RoundError, StoreError
from fedmote.privacy.group import MaskedGroup
from fedmote.privacy.secure_sum import Collector
from fedmote.rounds.events import MaskStep
from fedmote.store import Blobs, Checkpoint, CheckpointEntry, Ledger, State, UpdateEntry
from fedmote.strategies import MergeContext, ModelShape, Strategy
from fedmote.strategies.seams import Decoded
from fedmote.wire.blobs import decode_masked_update
from fedmote.wire.schema import Role


@dataclass(frozen=True)
class Inputs:
    """What the journal says of a round that is to be merged.

    Attributes:
        round: its number.
        updates: in ascending order of participants.
        masked: the group whose updates are summed under masks; None: nobody's are.
        keys, shares: names of the blobs of its members, by participant.
    """

    round: int
    updates: Sequence[UpdateEntry]
    masked: MaskedGroup | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, ledger: Ledger, number: int) -> Inputs:
        """From the journal."""
        keys, shares = (
            {blob.participant: blob.content for blob in ledger.mask_blobs(number, step)}
            for step in (MaskStep.KEYS, MaskStep.SHARES)
        )
        return cls(number, ledger.updates(number), ledger.rounds(number)[0].plan.masked, keys, shares)


@dataclass(frozen=True)
class Merging:
    """What a merge depends on beside the journal's entries.

    Attributes:
        strategy: codec and aggregation.
        model: names and shapes; the values do not matter.
        blobs: the updates as they came.
        run: its random name, 8 bytes.
        noise_key: secret of the run, from which noise is drawn; empty where there is none.
    """

    strategy: Strategy
    model: ModelShape
    blobs: Blobs
    run: bytes
    noise_key: bytes = field(default=b"", repr=False)

    def merge(self, base: Checkpoint, inputs: Inputs) -> tuple[Checkpoint, tuple[Finding, ...]]:
        """Merge a round.

        Args:
            base: the checkpoint that its updates are measured against.
            inputs: as journaled.

        Returns:
            The checkpoint, and what the merge says about the updates.

        Raises:
            RoundError: the result is not finite, or a masked sum is not what its members can have made.
            StoreError: a blob is missing or damaged.
        """
        masked = inputs.masked
        survivors = [] if masked is None else [entry for entry in inputs.updates if entry.participant in masked.numbers]
        total = None if masked is None or not survivors else self._unmasked(masked, inputs, survivors)

        def read() -> Iterator[tuple[Role, Update, Ranges]]:
            for entry in inputs.updates:
                if masked is None or entry.participant not in masked.numbers:
                    decoded = self.strategy.codec.decode(entry.role, self.blobs.get(entry.content), self.model)
                    yield entry.role, Update(entry.participant, entry.num_examples, decoded.tensors), decoded.ranges
                elif entry is survivors[0] and total is not None:
                    yield entry.role, _mean_of(survivors, total), total.ranges

        context = MergeContext(self.model, inputs.round, self.noise_key)
        merged = self.strategy.aggregation.merge(base.tensors, base.ranges, read, context)
        return Checkpoint(base.version + 1, inputs.round, merged.tensors, merged.ranges), merged.findings

    def _unmasked(self, group: MaskedGroup, inputs: Inputs, survivors: Sequence[UpdateEntry]) -> Decoded | None:
        """The mean of the survivors' updates; None where too little is there to take the masks off, and they are left out."""
        numbers = group.numbers
        collector = Collector(group.ring, self.run, inputs.round)
        keys = {numbers[who]: self.blobs.get(content) for who, content in inputs.keys.items()}
        shares = {numbers[who]: self.blobs.get(content) for who, content in inputs.shares.items()}
        if collector.complaint(keys, {numbers[entry.participant] for entry in survivors}, shares) is not None:
            return None
        size = self.model.num_head_parameters
        words = {numbers[entry.participant]: decode_masked_update(self.blobs.get(entry.content), size) for entry in survivors}
        try:
            total = group.grid.dequantize(collector.result(keys, words, shares), len(survivors))
        except ValueError as error:
            raise RoundError(f"masked sum of group {group.name}: {error}") from error
        return self.strategy.codec.head_of((total / len(survivors)).astype(np.float32), self.model)


def _mean_of(survivors: Sequence[UpdateEntry], mean: Decoded) -> Update:
    """One update in place of all of them, where the first one would be: "+" is below every character of an id."""
    name = f"{survivors[0].participant}+{len(survivors) - 1}"
    return Update(name, sum(entry.num_examples for entry in survivors), mean.tensors, num_members=len(survivors))


def has_same_encoder(one: Checkpoint, other: Checkpoint, head: Sequence[str]) -> bool:
    """Whether two checkpoints differ in the head alone, to the bit."""
    if one.ranges != other.ranges:
        return False
    names = [name for name in one.tensors if name not in head]
    return all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in names)


def load_or_replay(state: State, merging: Merging, entry: CheckpointEntry) -> tuple[Checkpoint, bool]:
    """Load a committed checkpoint; compute it again from the journal where its file is missing or damaged.

    Returns:
        The checkpoint, and whether it had to be computed again (its file is mended then).

    Raises:
        StoreError: neither its file nor the journal gives the bytes that were committed.
    """
    try:
        return state.checkpoints.load(entry.version, entry.hash), False
    except StoreError as damage:
        if entry.version == 0:
            raise
        entries = {one.version: one for one in state.ledger.checkpoints()}
        base, _ = load_or_replay(state, merging, entries[entry.version - 1])
        checkpoint, _ = merging.merge(base, Inputs.of(state.ledger, entry.round))
        if state.checkpoints.save(checkpoint) != entry.hash:
            raise StoreError(f"{damage}; computed again from the journal it differs: blobs or program were changed") from damage
        return checkpoint, True
