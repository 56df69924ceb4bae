# SPDX-License-Identifier: Apache-2.0
"""From the journal to a checkpoint: a pure function, so that a merge repeated after a crash gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedmote.aggregation import Finding, Update
from fedmote.aggregation.ranges import Ranges
from fedmote.errors import StoreError
from fedmote.store import Blobs, Checkpoint, CheckpointEntry, State, UpdateEntry
from fedmote.strategies import MergeContext, ModelShape, Strategy
from fedmote.wire.schema import Role


@dataclass(frozen=True)
class Merging:
    """What a merge depends on beside the journal's entries.

    Attributes:
        strategy: codec and aggregation.
        model: names and shapes; the values do not matter.
        blobs: the updates as they came.
        noise_key: secret of the run, from which noise is drawn; empty where there is none.
    """

    strategy: Strategy
    model: ModelShape
    blobs: Blobs
    noise_key: bytes = field(default=b"", repr=False)

    def merge(self, base: Checkpoint, number: int, updates: Sequence[UpdateEntry]) -> tuple[Checkpoint, tuple[Finding, ...]]:
        """Merge a round.

        Args:
            base: the checkpoint that its updates are measured against.
            number: of the round.
            updates: as journaled, in ascending order of participants.

        Returns:
            The checkpoint, and what the merge says about the updates.

        Raises:
            RoundError: the result is not finite.
            StoreError: a blob is missing or damaged.
        """

        def read() -> Iterator[tuple[Role, Update, Ranges]]:
            for entry in updates:
                decoded = self.strategy.codec.decode(entry.role, self.blobs.get(entry.content), self.model)
                yield entry.role, Update(entry.participant, entry.num_examples, decoded.tensors), decoded.ranges

        context = MergeContext(self.model, number, self.noise_key)
        merged = self.strategy.aggregation.merge(base.tensors, base.ranges, read, context)
        return Checkpoint(base.version + 1, number, merged.tensors, merged.ranges), merged.findings


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
        checkpoint, _ = merging.merge(base, entry.round, state.ledger.updates(entry.round))
        if state.checkpoints.save(checkpoint) != entry.hash:
            raise StoreError(f"{damage}; computed again from the journal it differs: blobs or program were changed") from damage
        return checkpoint, True
