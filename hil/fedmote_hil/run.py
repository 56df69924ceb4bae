# SPDX-License-Identifier: Apache-2.0
"""Inference of a package on a board: what the device would compute, byte by byte."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.planner import round_up
from fedmote.wire.regions import samples_region
from fedmote_hil.build import Program, build
from fedmote_hil.process import Child
from fedmote_hil.results import collect_results, refused

_PROCESS_S = 600.0


def run_on_board(board: Board | str, package: bytes, x: NDArray[np.int8], logits: bool = False) -> NDArray[np.generic]:
    """Runs every sample through the package's encoder, and its head, on a board.

    Args:
        board: the board or its name.
        package: bytes of a `.fmp` file or of its device form.
        x: int8 (N, ...), channels last, in the encoder's input quantization.
        logits: the head's logits instead of the features.

    Returns:
        Features int8 (N, D), or logits float32 (N, C).

    Raises:
        PackageError: the package is damaged, before anything is started.
        ConfigError: samples of another size than the package's input, or logits of a package without a head.
        DoesNotFitError: the package is too large for the board.
        DeviceError: the board refused the package or stopped.
        RigError: a tool is missing, or the build fails.
    """
    board = Board.load(board) if isinstance(board, str) else board
    content = Package.read(package)
    flat = np.ascontiguousarray(x, np.int8).reshape(len(x), int(np.prod(x.shape[1:])))
    if flat.shape[1] != content.header.input_count:
        raise ConfigError(f"samples of {flat.shape[1]} bytes, the package's input has {content.header.input_count}")
    if logits and content.outputs == 0:
        raise ConfigError("the package has no head: no logits")
    record_bytes = content.features + 4 * content.outputs
    device_form = content.device_form()
    if (needed := _arena_bytes(content)) > board.run_arena_bytes:
        raise DoesNotFitError(board.name, "arena", needed, board.run_arena_bytes)
    run = _run_process if board.emulator is None else _run_emulated
    batch = _batch_size(board, device_form, flat)
    with tempfile.TemporaryDirectory(prefix="fedmote-run-") as directory:
        results = b"".join(
            run(board, device_form, flat[start : start + batch], record_bytes, Path(directory))
            for start in range(0, len(flat), batch)
        )
    records = np.frombuffer(results, np.uint8).reshape(len(flat), record_bytes)
    if logits:
        return np.ascontiguousarray(records[:, content.features :]).view("<f4").reshape(len(flat), content.outputs)
    return np.ascontiguousarray(records[:, : content.features]).view(np.int8)


def _arena_bytes(package: Package) -> int:
    """What the program takes: encoder, float scratch with the logits, one result (device_sdk/examples/run/run.c)."""
    float_bytes = 4 * (package.features + 2 * package.outputs)
    return round_up(package.header.encoder_bytes) + round_up(float_bytes) + package.features + 4 * package.outputs


def _batch_size(board: Board, package: bytes, flat: NDArray[np.int8]) -> int:
    """Samples of one start of the board."""
    if board.emulator is None:
        return max(len(flat), 1)
    room = board.region("package").bytes
    if len(package) > room:
        raise DoesNotFitError(board.name, "flash", len(package), room)
    room = board.region("samples").bytes - 16
    batch = int(room // (flat.shape[1] + 4))  # 4: a label, and what pads the labels
    if batch == 0:
        raise DoesNotFitError(board.name, "samples", flat.shape[1] + 4, room)
    return batch


def _files(directory: Path, package: bytes, x: NDArray[np.int8]) -> dict[str, Path]:
    """The regions of a run, by their names."""
    files = {"package": directory / "package.fmp", "samples": directory / "samples.bin"}
    files["package"].write_bytes(package)
    files["samples"].write_bytes(samples_region(x, np.zeros(len(x), np.int64)))
    return files


def _run_process(board: Board, package: bytes, x: NDArray[np.int8], record_bytes: int, directory: Path) -> bytes:
    files = _files(directory, package, x)
    output = directory / "output.bin"
    image = build(board, Program.RUN)
    child = Child([str(image.path), str(files["package"]), str(files["samples"]), str(output)], directory)
    try:
        if child.wait(_PROCESS_S) != 0:
            raise _refusal(board, child.text())
    finally:
        child.kill()
    results = output.read_bytes()
    if len(results) != len(x) * record_bytes:
        raise DeviceError(f"board {board.name}: {len(results)} bytes of results, {len(x) * record_bytes} expected")
    return results


def _refusal(board: Board, said: str) -> DeviceError:
    """The error of a program that ended with "...: status -21"."""
    found = re.search(r"status -(\d+)$", said)
    return DeviceError(f"board {board.name}: {said}") if found is None else refused(board, int(found[1]))


def _run_emulated(board: Board, package: bytes, x: NDArray[np.int8], record_bytes: int, directory: Path) -> bytes:
    image = build(board, Program.RUN, is_checked=True)
    return collect_results(image, _files(directory, package, x), len(x) * record_bytes, directory)
