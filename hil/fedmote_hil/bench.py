# SPDX-License-Identifier: Apache-2.0
"""Instruction counts of encoders and of the head's training step, from an emulated board.

Two timers of the board tick once per executed instruction, whatever this machine is busy with. Every run counts loops of known
length first, every inference is counted once by each timer, and the features are compared with those of the host: a number that
comes out of here is one of a correct inference, counted correctly. Instructions are not cycles: never quote them as time.
"""

from __future__ import annotations

import functools
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError
from fedmote.package.boards import Board, board_names, sdk_root
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.file import Package
from fedmote.package.specimen import random_samples
from fedmote.wire.regions import samples_region
from fedmote.wire.schema import Opcode
from fedmote_hil.build import Image, Program, build
from fedmote_hil.results import collect_results
from fedmote_hil.sizes import Sizes, read_map

# What bench_validate() of the images counts: two timers each, two instructions for each turn of a loop.
_LOOPS = (1, 1001, 100001)
_EXPECTED = tuple(2 * turns for turns in _LOOPS for _timer in range(2))
_KERNEL_WORDS = 8
_HEAD_ROWS = 11
_HEAD_WORDS = 13
_LAST_HEAD_BYTES = 4 * (65 * 16 + 17 * 10)
_MICRO = 1e6
_FLOAT_BYTES = 4
# What an encoder needs of the SDK besides the kernels of its operators: the reader, and what kernels share.
_RUNTIME_FILES = ("package", "crc32", "encoder", "operator", "arrangement", "dot", "requantize")


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
        flash_bytes: package reader, encoder, the kernels in use and the C library.
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


def counting_boards() -> list[str]:
    """Boards on which instructions can be counted."""
    return [name for name in board_names() if (sdk_root() / "boards" / name / "bench_main.c").is_file()]


def count_kernels(board: Board | str, package: Package) -> KernelCounts:
    """Counts one inference of a package with its host sections.

    Raises:
        ConfigError: instructions cannot be counted on this board.
        DoesNotFitError: the package is too large for it.
        DeviceError: the board refused, miscounted, or computed other features than the host.
        RigError: a tool is missing, or the build fails.
    """
    board = _counting_board(board)
    _check_fit(board, package)
    x = random_samples(package.graph, 1, 0)
    units = compile_graph(package.graph, board.arrangement).units
    words_bytes = 4 * (len(_EXPECTED) + _KERNEL_WORDS + len(units))
    image = build(board, Program.BENCH_KERNELS, is_checked=True, has_crypto=False)
    content = {"package": package.device_form(), "samples": samples_region(x.reshape(1, -1), np.zeros(1, np.int64))}
    blob = _measure(image, content, words_bytes + package.features)
    verification, startup, first, second, stack, arena, structs, op_count, *each = _checked_words(board, blob[:words_bytes])
    if first != second:
        raise DeviceError(f"board {board.name} miscounts: one inference has {first} and {second} instructions")
    if op_count != len(units):
        raise DeviceError(f"board {board.name} counted {op_count} operators of {len(units)}")
    if blob[words_bytes:] != run_int8(package.graph, x).tobytes():
        raise DeviceError(f"board {board.name} computed other features than the host; nothing was measured")
    return KernelCounts(
        kernels=_variant(image),
        instructions=first,
        macs=package.header.macs,
        operators=tuple((name, opcode, count) for (name, opcode, _, _), count in zip(units, each, strict=True)),
        verification=verification,
        startup=startup,
        arena_bytes=arena + structs,
        flash_bytes=runtime_flash(image, {opcode for _, opcode, _, _ in units}),
        stack_bytes=stack,
    )


def count_head(board: Board | str) -> list[HeadCounts]:
    """Counts training steps of heads of several sizes, plain and with every option, in the board's arithmetic.

    Raises:
        ConfigError, DeviceError, RigError: as `count_kernels`.
    """
    board = _counting_board(board)
    words_bytes = 4 * (len(_EXPECTED) + _HEAD_ROWS * _HEAD_WORDS)
    image = build(board, Program.BENCH_HEAD, is_checked=True, has_crypto=False)
    blob = _measure(image, {}, words_bytes + _LAST_HEAD_BYTES)
    if not np.all(np.isfinite(np.frombuffer(blob[words_bytes:], "<f4"))):
        raise DeviceError(f"board {board.name} trained a head that is not finite; nothing was measured")
    words = _checked_words(board, blob[:words_bytes])
    return [_head_counts(words[start : start + _HEAD_WORDS]) for start in range(0, len(words), _HEAD_WORDS)]


def _head_counts(words: tuple[int, ...]) -> HeadCounts:
    parameter_bytes, inputs, hidden, outputs, batch, momentum, decay, clip, steps, instructions, velocity, scratch, stack = words
    return HeadCounts(
        arithmetic="float32" if parameter_bytes == _FLOAT_BYTES else "int16",
        inputs=inputs,
        hidden=hidden,
        outputs=outputs,
        batch=batch,
        momentum=momentum / _MICRO,
        weight_decay=decay / _MICRO,
        clip_norm=clip / _MICRO,
        instructions_per_sample=round(instructions / (steps * batch)),
        velocity_bytes=velocity,
        scratch_bytes=scratch,
        stack_bytes=stack,
    )


def runtime_flash(image: Image, opcodes: set[Opcode]) -> int:
    """Bytes of flash of what an encoder with these operators needs, from the linker's map of an image."""
    needed = {*_RUNTIME_FILES, *(opcode.name.lower() for opcode in opcodes)}
    return sum(
        size
        for (owner, file), size in _map_of(image).flash.items()
        if owner == "library" or (owner == "sdk" and _without_variant(file)[0] in needed)
    )


def _map_of(image: Image) -> Sizes:
    return read_map((image.build_directory / f"{image.path.stem}.map").read_text(encoding="utf-8"))


def _without_variant(file: str) -> tuple[str, str]:
    """Name of a kernel and of its variant, from the name of its file: conv_2d.c, conv_2d_cortex_m_dsp.c."""
    name = file.removesuffix(".c")
    for variant in _variants():
        if name.endswith(f"_{variant}"):
            return name.removesuffix(f"_{variant}"), variant
    return name, "portable"


@functools.cache
def _variants() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (sdk_root() / "variants").iterdir()))


def _variant(image: Image) -> str:
    """The variant of the kernels in an image."""
    found = {_without_variant(file)[1] for owner, file in _map_of(image).flash if owner == "sdk"} - {"portable"}
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


def _checked_words(board: Board, data: bytes) -> tuple[int, ...]:
    """The words behind those of the known loops, if these were counted right."""
    words = struct.unpack(f"<{len(data) // 4}I", data)
    if words[: len(_EXPECTED)] != _EXPECTED:
        raise DeviceError(f"board {board.name} miscounts loops of {_EXPECTED} instructions: {words[: len(_EXPECTED)]}")
    return words[len(_EXPECTED) :]
