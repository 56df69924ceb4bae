# SPDX-License-Identifier: Apache-2.0
"""Instruction counts of encoders and of the head's training step, from an emulated board.

Executed instructions drive the clock of the emulator, and with it two counters of the board, whatever this machine is busy with.
Every run counts loops of known length first, every inference is counted once by each counter, and the features are compared with
those of the host: a number that comes out of here is one of a correct inference, counted correctly. Instructions are not cycles:
never quote them as time.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError
from fedmote.package.boards import Board, boards_with
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.file import Package
from fedmote.package.specimen import random_samples
from fedmote.wire.regions import samples_region
from fedmote.wire.schema import Opcode
from fedmote_hil.build import Image, Program, build, build_footprint
from fedmote_hil.results import collect_results
from fedmote_hil.sizes import Sizes, kernel_of, read_map

# What bench_validate() of the images counts with each of the two counters: two instructions for each turn of a loop.
_LOOPS = tuple(2 * turns for turns in (1, 1001, 100001))
_VALIDATION_WORDS = 2 * len(_LOOPS)
# Ticks by which a count is off, less than this, where an instruction does not take whole ticks: see Clock.
_RESOLUTION = 2
_KERNEL_WORDS = 8
_HEAD_ROWS = 11
_HEAD_WORDS = 14
_MICRO = 1e6
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class KernelCounts:
    """One inference.

    Attributes:
        kernels: variant of the kernels: "portable" or the name of a folder below device_sdk/variants.
        instructions: of one inference.
        macs: multiply-accumulates of it.
        operators: (name, opcode, instructions) of each operator alone.
        verification: instructions of opening the package: CRC-32 and every bound; a hash would come on top.
        startup: instructions from the verified package to the first operator.
        arena_bytes: the encoder's arena and the two structs beside it.
        flash_bytes: an image of package reader, encoder and the kernels in use, C library included, less an empty image.
        stack_bytes: deepest stack of one inference.
    """

    kernels: str
    instructions: int
    macs: int
    operators: tuple[tuple[str, Opcode, int], ...]
    verification: int
    startup: int
    arena_bytes: int
    flash_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class HeadCounts:
    """Steps of SGD of one head.

    Attributes:
        arithmetic: "float32" or "int16".
        inputs, hidden, outputs: sizes; hidden 0 is one layer.
        batch: samples of one step.
        momentum, weight_decay, clip_norm: of SGD; 0 is without.
        instructions_per_sample: mean over 32 samples.
        velocity_bytes: of the one buffer that momentum and batches above 1 need.
        scratch_bytes: outputs and hidden units of the sample at hand. In a device's arena they lie in the encoder's memory, which
            rests meanwhile, and add nothing to it.
        stack_bytes: deepest stack of a step.
    """

    arithmetic: str
    inputs: int
    hidden: int
    outputs: int
    batch: int
    momentum: float
    weight_decay: float
    clip_norm: float
    instructions_per_sample: int
    velocity_bytes: int
    scratch_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Clock:
    """What turns ticks of a board's counter into instructions, exactly.

    A count is the difference of two measurements, the work's and that of no work, and each of these the difference of two
    readings, which a counter rounds to ticks. Where an instruction takes whole ticks, nothing is rounded. Elsewhere a count is
    off by less than two ticks, so that four ticks per instruction or more still tell each number of instructions from the next.

    Attributes:
        board: whose counter it is, for messages.
        ticks: per instruction.
    """

    board: str
    ticks: Fraction

    @classmethod
    def of(cls, board: str, rate_hz: int, icount_shift: int) -> Clock:
        """The clock of a counter.

        Raises:
            ConfigError: it is too coarse.
        """
        ticks = Fraction(rate_hz << icount_shift, 10**9)
        if ticks.denominator != 1 and ticks < 2 * _RESOLUTION:
            raise ConfigError(
                f"board {board}: {float(ticks)} ticks per instruction cannot tell two numbers of instructions apart"
            )
        return cls(board, ticks)

    def instructions(self, ticks: int) -> int:
        """The number of instructions that took so many ticks.

        Raises:
            DeviceError: no number did, within the resolution: something else drove the counter.
        """
        count = round(ticks / self.ticks)
        off = abs(ticks - count * self.ticks)
        if off >= _RESOLUTION or (off > 0 and self.ticks.denominator == 1):
            raise DeviceError(f"board {self.board} miscounts: {ticks} ticks of {float(self.ticks)} per instruction")
        return count


def counting_boards() -> list[str]:
    """Boards on which instructions can be counted."""
    return boards_with(Program.BENCH_KERNELS)


def count_kernels(board: Board | str, package: Package) -> KernelCounts:
    """Counts one inference of a package with its host sections.

    Raises:
        ConfigError: instructions cannot be counted on this board.
        DoesNotFitError: the package is too large for it.
        DeviceError: the board refused, miscounted, or computed other features than the host.
        RigError: a tool is missing, or the build fails.
    """
    board = _counting_board(board)
    measured = _count(board, package)
    return KernelCounts(
        kernels=_variant(measured.image),
        instructions=measured.instructions,
        macs=package.header.macs,
        operators=measured.operators,
        verification=measured.verification,
        startup=measured.startup,
        arena_bytes=measured.arena_bytes,
        flash_bytes=runtime_flash(board, {opcode for _, opcode, _ in measured.operators}),
        stack_bytes=measured.stack_bytes,
    )


def count_operators(board: Board | str, package: Package) -> tuple[int, tuple[int, ...]]:
    """Instructions of one inference of a package, and of each of its operators as an inference of its own.

    Raises:
        ConfigError, DoesNotFitError, DeviceError, RigError: as `count_kernels`.
    """
    measured = _count(_counting_board(board), package)
    return measured.instructions, tuple(count for _, _, count in measured.operators)


@dataclass(frozen=True)
class _Measured:
    """What a board said of one inference, and the image that said it; attributes as of `KernelCounts`."""

    image: Image
    instructions: int
    operators: tuple[tuple[str, Opcode, int], ...]
    verification: int
    startup: int
    arena_bytes: int
    stack_bytes: int


def _count(board: Board, package: Package) -> _Measured:
    _check_fit(board, package)
    x = random_samples(package.graph, 1, 0)
    units = compile_graph(package.graph, board.arrangement).units
    words_bytes = 4 * (_VALIDATION_WORDS + _KERNEL_WORDS + len(units))
    image = build(board, Program.BENCH_KERNELS, is_checked=True, has_crypto=False)
    content = {"package": package.device_form(), "samples": samples_region(x.reshape(1, -1), np.zeros(1, np.int64))}
    blob = _measure(image, content, words_bytes + package.features)
    clock, other, words = _validated(board, blob[:words_bytes])
    verification, startup, ticks, other_ticks, stack, arena, structs, op_count, *each = words
    first, second = clock.instructions(ticks), other.instructions(other_ticks)
    if first != second:
        raise DeviceError(f"board {board.name} miscounts: one inference has {first} and {second} instructions")
    if op_count != len(units):
        raise DeviceError(f"board {board.name} counted {op_count} operators of {len(units)}")
    if blob[words_bytes:] != run_int8(package.graph, x).tobytes():
        raise DeviceError(f"board {board.name} computed other features than the host; nothing was measured")
    operators = tuple((name, opcode, clock.instructions(count)) for (name, opcode, _, _), count in zip(units, each, strict=True))
    startup = clock.instructions(startup)
    return _Measured(image, first, operators, clock.instructions(verification), startup, arena + structs, stack)


def count_head(board: Board | str, skipped: list[str] | None = None) -> list[HeadCounts]:
    """Counts training steps of heads of several sizes, plain and with every option, in the board's arithmetic.

    Args:
        board: the board or its name.
        skipped: gets a line for each head that is too large for the board's memory.

    Raises:
        ConfigError, DeviceError, RigError: as `count_kernels`.
    """
    board = _counting_board(board)
    image = build(board, Program.BENCH_HEAD, is_checked=True, has_crypto=False)
    clock, _, words = _validated(board, _measure(image, {}, 4 * (_VALIDATION_WORDS + _HEAD_ROWS * _HEAD_WORDS)))
    counted = []
    for start in range(0, len(words), _HEAD_WORDS):
        row = _HeadWords(*words[start : start + _HEAD_WORDS])
        if row.steps > 0:
            counted.append(_head_counts(board, clock, row))
        elif skipped is not None:
            sizes = " -> ".join(str(size) for size in (row.inputs, row.hidden, row.outputs) if size)
            skipped.append(f"{sizes}, batch {row.batch}: too large for {board.run_arena_bytes} bytes of board {board.name}")
    return counted


class _HeadWords(NamedTuple):
    """A row of examples/bench/head.c."""

    parameter_bytes: int
    inputs: int
    hidden: int
    outputs: int
    batch: int
    momentum: int
    weight_decay: int
    clip_norm: int
    steps: int
    ticks: int
    velocity_bytes: int
    scratch_bytes: int
    stack_bytes: int
    finite: int

    @property
    def parameters(self) -> int:
        if self.hidden == 0:
            return (self.inputs + 1) * self.outputs
        return (self.inputs + 1) * self.hidden + (self.hidden + 1) * self.outputs


def _head_counts(board: Board, clock: Clock, row: _HeadWords) -> HeadCounts:
    if row.finite != row.parameters:
        raise DeviceError(f"board {board.name} trained a head that is not finite; nothing was measured")
    return HeadCounts(
        arithmetic="float32" if row.parameter_bytes == _FLOAT_BYTES else "int16",
        inputs=row.inputs,
        hidden=row.hidden,
        outputs=row.outputs,
        batch=row.batch,
        momentum=row.momentum / _MICRO,
        weight_decay=row.weight_decay / _MICRO,
        clip_norm=row.clip_norm / _MICRO,
        instructions_per_sample=round(clock.instructions(row.ticks) / (row.steps * row.batch)),
        velocity_bytes=row.velocity_bytes,
        scratch_bytes=row.scratch_bytes,
        stack_bytes=row.stack_bytes,
    )


def runtime_flash(board: Board, opcodes: set[Opcode]) -> int:
    """Bytes of flash of an encoder with these operators: an image of reader, encoder and their kernels less an empty image."""
    encoder, empty = build_footprint(board, [opcode.name.lower() for opcode in opcodes])
    return _image_bytes(encoder) - _image_bytes(empty)


def _image_bytes(image: Image) -> int:
    if image.binary is None:
        raise ConfigError(f"board {image.board.name} has no image")
    return image.binary.stat().st_size


def _map_of(image: Image) -> Sizes:
    return read_map((image.build_directory / f"{image.path.stem}.map").read_text(encoding="utf-8"))


def _variant(image: Image) -> str:
    """The variant of the kernels in an image."""
    found = {kernel_of(file)[1] for owner, file in _map_of(image).flash if owner == "sdk"} - {"portable"}
    return ", ".join(sorted(found)) or "portable"


def _counting_board(board: Board | str) -> Board:
    board = Board.load(board) if isinstance(board, str) else board
    if board.name not in counting_boards():
        raise ConfigError(f"board {board.name} cannot count instructions; these can: {', '.join(counting_boards())}")
    return board


def _check_fit(board: Board, package: Package) -> None:
    needs = {
        "arena": (package.header.encoder_bytes, board.run_arena_bytes),
        "flash": (len(package.device_form()), board.region("package").bytes),
        "samples": (package.header.input_count + 20, board.region("samples").bytes),
    }
    for what, (needed, available) in needs.items():
        if needed > available:
            raise DoesNotFitError(board.name, what, needed, available)


def _measure(image: Image, content: dict[str, bytes], size: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as name:
        directory = Path(name)
        files = {region: directory / f"{region}.bin" for region in content}
        for region, data in content.items():
            files[region].write_bytes(data)
        return collect_results(image, files, size, directory, is_counting=True)


def _clocks(board: Board) -> tuple[Clock, Clock]:
    """Those of the two counters of an emulated board."""
    if board.emulator is None:
        raise ConfigError(f"board {board.name} has no emulator")
    shift = board.emulator.icount_shift
    return Clock.of(board.name, board.emulator.counter0_hz, shift), Clock.of(board.name, board.emulator.counter1_hz, shift)


def _validated(board: Board, data: bytes) -> tuple[Clock, Clock, tuple[int, ...]]:
    """The clocks of the two counters, and the words behind those of the known loops, if both counted these right."""
    clocks = _clocks(board)
    words = struct.unpack(f"<{len(data) // 4}I", data)
    counted = tuple(clocks[n % 2].instructions(ticks) for n, ticks in enumerate(words[:_VALIDATION_WORDS]))
    if counted != (expected := tuple(loop for loop in _LOOPS for _ in clocks)):
        raise DeviceError(f"board {board.name} miscounts loops of {expected} instructions: {counted}")
    return *clocks, words[_VALIDATION_WORDS:]
