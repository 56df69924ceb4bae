# SPDX-License-Identifier: Apache-2.0
"""What a package costs on a board: the memory plan of the device (protocol/SPEC.md, "Memory"), and whether it fits.

The device computes the same numbers in `device_sdk/src/arena.c`; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.planner import round_up

COMMIT_RECORD_BYTES = 16  # at the end of a slot
_LINK_OVERHEAD_BYTES = 128
_SAMPLE_BYTES = 12  # loss f32, norm f32, rank u16, norm rank u16
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Layout:
    """Byte offsets of the regions of a device's arena.

    Attributes:
        required: bytes without any cached embedding: what must fit.
        total: bytes with the embeddings of all samples cached.
    """

    link: int
    encoder: int
    head: int
    head_base: int
    velocity: int
    scratch: int
    samples: int
    cache: int
    required: int
    total: int


def layout(n: int, max_body: int, encoder_bytes: int, parameters: int, features: int, outputs: int) -> Layout:
    """The arena of a device with `n` samples.

    Args:
        n: local samples.
        max_body: largest message body of the board.
        encoder_bytes: arena of the encoder.
        parameters: of the head (P).
        features: that the head reads (D).
        outputs: of the head (C).
    """
    sizes = [
        2 * round_up(max_body + _LINK_OVERHEAD_BYTES),
        encoder_bytes,
        *[_FLOAT_BYTES * parameters] * 3,
        _FLOAT_BYTES * (features + outputs),
        _SAMPLE_BYTES * n,
        n * features,
    ]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + round_up(size))
    link, encoder, head, head_base, velocity, scratch, samples, cache, total = offsets
    return Layout(link, encoder, head, head_base, velocity, scratch, samples, cache, required=cache, total=total)


@dataclass(frozen=True)
class Cost:
    """Bytes that a package needs on one board.

    Attributes:
        board: name.
        slot_bytes, slot_available: the device form and its commit record.
        arena_bytes, arena_available: with all of the board's samples, without cached embeddings.
        cached_samples: embeddings that fit into the rest of the arena.
        run_arena_bytes, run_arena_available: of the inference image.
    """

    board: str
    slot_bytes: int
    slot_available: int
    arena_bytes: int
    arena_available: int
    cached_samples: int
    run_arena_bytes: int
    run_arena_available: int

    @property
    def fits(self) -> bool:
        """Whether the board can train with this package."""
        return self.slot_bytes <= self.slot_available and self.arena_bytes <= self.arena_available


def cost(package_bytes: int, encoder_bytes: int, features: int, outputs: int, board: Board) -> Cost:
    """What a package needs on a board.

    Args:
        package_bytes: size of the device form.
        encoder_bytes: arena of the encoder.
        features: inputs of the head (D).
        outputs: of the head (C).
        board: the board.
    """
    parameters = outputs * features + outputs
    arena = layout(board.max_samples, board.body_max, encoder_bytes, parameters, features, outputs)
    left = board.arena_bytes - arena.required
    return Cost(
        board=board.name,
        slot_bytes=package_bytes + COMMIT_RECORD_BYTES,
        slot_available=board.slot_bytes,
        arena_bytes=arena.required,
        arena_available=board.arena_bytes,
        cached_samples=min(board.max_samples, max(0, left) // features),
        run_arena_bytes=encoder_bytes,
        run_arena_available=board.run_arena_bytes,
    )


def check_cost(needs: Cost) -> None:
    """Refuses what does not fit.

    Raises:
        DoesNotFitError: the slot or the arena is too small; needed and available bytes are in it.
    """
    if needs.slot_bytes > needs.slot_available:
        raise DoesNotFitError(needs.board, "slot", needs.slot_bytes, needs.slot_available)
    if needs.arena_bytes > needs.arena_available:
        raise DoesNotFitError(needs.board, "arena", needs.arena_bytes, needs.arena_available)
