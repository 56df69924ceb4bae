# SPDX-License-Identifier: Apache-2.0
"""What a package costs on a board: the memory plan of the device (protocol/SPEC.md, "Memory"), and whether it fits.

The device computes the same numbers in `device_sdk/src/arena.c`; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmote.errors import ConversionError, DoesNotFitError
from fedmote.package.boards import Arithmetic, Board
from fedmote.package.head import HeadShape
from fedmote.package.planner import round_up
from fedmote.package.records import PlanHeader

SLOT_END_BYTES = 48  # marks of the trial and commit record, at the end of a slot
_LINK_OVERHEAD_BYTES = 128
_SAMPLE_BYTES = 12  # loss f32, norm f32, rank u16, norm rank u16
_WORD_BYTES = 4
# Of the arithmetic of a head: bytes of a parameter, words of scratch memory per input of a layer.
_PARAMETER_BYTES: dict[Arithmetic, int] = {"float32": 4, "int16": 2}
_WORDS_PER_INPUT: dict[Arithmetic, int] = {"float32": 0, "int16": 1}


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


def layout(n: int, max_body: int, header: PlanHeader, head: HeadShape, arithmetic: Arithmetic) -> Layout:
    """The arena of a device with `n` samples.

    Args:
        n: local samples.
        max_body: largest message body of the board.
        header: of the encoder.
        head: sizes of the head.
        arithmetic: that the board trains it in.
    """
    link = 2 * round_up(max_body + _LINK_OVERHEAD_BYTES)
    scratch, encoder_bytes = _scratch(header, head, arithmetic)
    sizes = [
        encoder_bytes,
        _PARAMETER_BYTES[arithmetic] * head.parameters,
        *[_WORD_BYTES * head.parameters] * 2,
        _SAMPLE_BYTES * n,
        n * head.inputs,
    ]
    offsets = [link]
    for size in sizes:
        offsets.append(offsets[-1] + round_up(size))
    encoder, parameters, head_base, velocity, samples, cache, total = offsets
    return Layout(0, encoder, parameters, head_base, velocity, encoder + scratch, samples, cache, required=cache, total=total)


def _scratch(header: PlanHeader, head: HeadShape, arithmetic: Arithmetic) -> tuple[int, int]:
    """Where in the encoder's memory the head's scratch lies, before the features or else behind; and that memory's bytes."""
    words = head.outputs + 2 * head.hidden + _WORDS_PER_INPUT[arithmetic] * max(head.inputs, head.hidden)
    behind = round_up(header.feature_offset + header.feature_count)
    start = 0 if header.feature_offset >= _WORD_BYTES * words else behind
    return start, max(header.encoder_bytes, start + _WORD_BYTES * words)


def run_arena_bytes(encoder_bytes: int, features: int, head: HeadShape) -> int:
    """What the inference image takes: encoder, hidden values with the logits, one result (device_sdk/examples/run/run.c)."""
    results = _WORD_BYTES * head.outputs
    return round_up(encoder_bytes) + round_up(_WORD_BYTES * head.hidden + results) + features + results


@dataclass(frozen=True)
class Cost:
    """Bytes that a package needs on one board.

    Attributes:
        board: name.
        slot_bytes, slot_available: the device form, and what a slot has at its end.
        samples: that the board can hold.
        arena_bytes, arena_available: with so many samples, without cached embeddings.
        cached_samples: embeddings that fit into the rest of the arena.
        run_arena_bytes, run_arena_available: of the inference image.
        package_bytes, package_available: the device form in the inference image's region; None where a file stands for it.
    """

    board: str
    slot_bytes: int
    slot_available: int
    arena_bytes: int
    arena_available: int
    samples: int
    cached_samples: int
    run_arena_bytes: int
    run_arena_available: int
    package_bytes: int
    package_available: int | None

    @property
    def fits(self) -> bool:
        """Whether the board can train with this package."""
        return self.samples > 0 and self.slot_bytes <= self.slot_available and self.arena_bytes <= self.arena_available

    @property
    def runs(self) -> bool:
        """Whether the board's inference image can run it."""
        has_room = self.package_available is None or self.package_bytes <= self.package_available
        return has_room and self.run_arena_bytes <= self.run_arena_available


def cost(package_bytes: int, header: PlanHeader, head: HeadShape, board: Board) -> Cost:
    """What a package needs on a board.

    Args:
        package_bytes: size of the device form.
        header: of the encoder.
        head: sizes of the head.
        board: the board.
    """
    samples = board.samples_for(header.input_count)
    arena = layout(samples, board.body_max, header, head, board.arithmetic)
    left = board.arena_bytes - arena.required
    return Cost(
        board=board.name,
        slot_bytes=package_bytes + SLOT_END_BYTES,
        slot_available=board.slot_bytes,
        arena_bytes=arena.required,
        arena_available=board.arena_bytes,
        samples=samples,
        cached_samples=min(samples, max(0, left) // head.inputs),
        run_arena_bytes=run_arena_bytes(header.encoder_bytes, header.feature_count, head),
        run_arena_available=board.run_arena_bytes,
        package_bytes=package_bytes,
        package_available=board.regions["package"].bytes if "package" in board.regions else None,
    )


def check_cost(needs: Cost) -> None:
    """Refuses what does not fit.

    Raises:
        DoesNotFitError: the slot or the arena is too small; needed and available bytes are in it.
        ConversionError: the board has no room for a sample.
    """
    if needs.slot_bytes > needs.slot_available:
        raise DoesNotFitError(needs.board, "slot", needs.slot_bytes, needs.slot_available)
    if needs.arena_bytes > needs.arena_available:
        raise DoesNotFitError(needs.board, "arena", needs.arena_bytes, needs.arena_available)
    if needs.samples < 1:
        raise ConversionError(f"board {needs.board}: not one sample of this size fits its region; choose a larger board")
