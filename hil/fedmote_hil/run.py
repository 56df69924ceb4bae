# SPDX-License-Identifier: Apache-2.0
"""Inference of packages on a board: what the device would compute, byte by byte."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.budget import run_arena_bytes
from fedmote.package.file import Package
from fedmote.package.planner import round_up
from fedmote.wire.regions import samples_region
from fedmote_hil.build import Program, build
from fedmote_hil.process import Child
from fedmote_hil.results import collect_results, refused

_PROCESS_S = 600.0


@dataclass(frozen=True)
class Job:
    """A package in its device form and its samples.

    Attributes:
        package: bytes.
        samples: int8 (N, input bytes).
        result_bytes: of one sample: its features, then its float32 logits.
    """

    package: bytes
    samples: NDArray[np.int8]
    result_bytes: int


def run_on_board(board: Board | str, package: bytes, x: NDArray[np.int8], logits: bool = False) -> NDArray[np.generic]:
    """Runs every sample through the package's encoder, and its head, on a board; see `run_many_on_board`.

    Args:
        board: the board or its name.
        package: bytes of a `.fmp` file or of its device form.
        x: int8 (N, ...), channels last, in the encoder's input quantization.
        logits: the head's logits instead of the features.

    Returns:
        Features int8 (N, D), or logits float32 (N, C).
    """
    return run_many_on_board(board, [(package, x)], logits)[0]


def run_many_on_board(
    board: Board | str, items: Sequence[tuple[bytes, NDArray[np.int8]]], logits: bool = False
) -> list[NDArray[np.generic]]:
    """Runs many packages, each over its own samples, with as few starts of the board as its regions allow.

    Args:
        board: the board or its name.
        items: packages and samples as for `run_on_board`.
        logits: the heads' logits instead of the features.

    Returns:
        For each package features int8 (N, D), or logits float32 (N, C).

    Raises:
        PackageError: a package is damaged, before anything is started.
        ConfigError: samples of another size than the package's input, or logits of a package without a head.
        DoesNotFitError: a package is too large for the board.
        DeviceError: the board refused a package or stopped.
        RigError: a tool is missing, or the build fails.
    """
    board = Board.load(board) if isinstance(board, str) else board
    packages = [Package.read(package) for package, _ in items]
    jobs = [_job(board, package, x, logits) for package, (_, x) in zip(packages, items, strict=True)]
    return [
        np.ascontiguousarray(results[:, package.features :]).view("<f4")
        if logits
        else np.ascontiguousarray(results[:, : package.features]).view(np.int8)
        for package, results in zip(packages, run_jobs(board, jobs), strict=True)
    ]


def run_jobs(board: Board, jobs: Sequence[Job]) -> list[NDArray[np.uint8]]:
    """What a board computes: uint8 (N, result_bytes) for each job.

    Raises:
        DoesNotFitError, DeviceError, RigError: as `run_many_on_board`.
    """
    run = _run_process if board.emulator is None else _run_emulated
    results = [bytearray() for _ in jobs]
    with tempfile.TemporaryDirectory(prefix="fedmote-run-") as directory:
        for start in _starts(board, jobs):
            blob = run(board, [job for _, job in start], Path(directory))
            for index, job in start:
                size = len(job.samples) * job.result_bytes
                results[index] += blob[:size]
                blob = blob[size:]
    return [
        np.frombuffer(result, np.uint8).reshape(len(job.samples), job.result_bytes)
        for job, result in zip(jobs, results, strict=True)
    ]


def _job(board: Board, package: Package, x: NDArray[np.int8], logits: bool) -> Job:
    """A package and its samples, if they go together and fit the program."""
    flat = np.ascontiguousarray(x, np.int8).reshape(len(x), int(np.prod(x.shape[1:])))
    if flat.shape[1] != package.header.input_count:
        raise ConfigError(f"samples of {flat.shape[1]} bytes, the package's input has {package.header.input_count}")
    if logits and package.outputs == 0:
        raise ConfigError("the package has no head: no logits")
    needed = run_arena_bytes(package.header.encoder_bytes, package.features, package.head_shape)
    if needed > board.run_arena_bytes:
        raise DoesNotFitError(board.name, "arena", needed, board.run_arena_bytes)
    return Job(package.device_form(), flat, package.features + 4 * package.outputs)


def _starts(board: Board, jobs: Sequence[Job]) -> Iterator[list[tuple[int, Job]]]:
    """What each start of the board does: numbers of jobs, and the part of their samples for which there is room."""
    if board.emulator is None:
        if any(len(job.samples) for job in jobs):
            yield [(index, job) for index, job in enumerate(jobs) if len(job.samples)]
        return
    rooms = board.region("package").bytes, board.region("samples").bytes
    start: list[tuple[int, Job]] = []
    package_room, samples_room = rooms
    for job in jobs:
        check_fit(board, job)
    for index, job in enumerate(jobs):
        done = 0
        while done < len(job.samples):
            count = min(len(job.samples) - done, _samples_in(samples_room, job))
            if count == 0 or len(job.package) > package_room:
                yield start
                start, (package_room, samples_room) = [], rooms
                continue
            part = Job(job.package, job.samples[done : done + count], job.result_bytes)
            start.append((index, part))
            package_room -= round_up(len(part.package))
            samples_room -= len(_padded_samples(part))
            done += count
    if start:
        yield start


def check_fit(board: Board, job: Job) -> None:
    """Refuses a job of which not even one sample fits the empty regions of an emulated board.

    Raises:
        DoesNotFitError: needed and available bytes are in it.
    """
    package_room, samples_room = board.region("package").bytes, board.region("samples").bytes
    if len(job.package) > package_room:
        raise DoesNotFitError(board.name, "flash", len(job.package), package_room)
    if _samples_in(samples_room, job) == 0:
        raise DoesNotFitError(board.name, "samples", job.samples.shape[1] + _SAMPLES_OVERHEAD, samples_room)


# A samples region of N samples has N labels, at most this much else beside the samples, and begins at a multiple of 16.
_SAMPLES_OVERHEAD = 16 + 3 + 15


def _samples_in(room: int, job: Job) -> int:
    """How many samples of a job surely fit."""
    sample_bytes: int = job.samples.shape[1]
    return max(0, room - _SAMPLES_OVERHEAD) // (sample_bytes + 1)


def _padded_samples(job: Job) -> bytes:
    region = samples_region(job.samples, np.zeros(len(job.samples), np.int64))
    return region.ljust(round_up(len(region)), b"\0")


def _files(directory: Path, jobs: Sequence[Job]) -> dict[str, Path]:
    """The regions of a start, by their names."""
    files = {"package": directory / "packages.bin", "samples": directory / "samples.bin"}
    files["package"].write_bytes(b"".join(job.package.ljust(round_up(len(job.package)), b"\0") for job in jobs))
    files["samples"].write_bytes(b"".join(_padded_samples(job) for job in jobs))
    return files


def _blob_bytes(jobs: Sequence[Job]) -> int:
    return sum(len(job.samples) * job.result_bytes for job in jobs)


def _run_process(board: Board, jobs: Sequence[Job], directory: Path) -> bytes:
    files = _files(directory, jobs)
    output = directory / "output.bin"
    image = build(board, Program.RUN)
    child = Child([str(image.path), str(files["package"]), str(files["samples"]), str(output)], directory)
    try:
        if child.wait(_PROCESS_S) != 0:
            raise _refusal(board, child.text())
    finally:
        child.kill()
    results = output.read_bytes()
    if len(results) != _blob_bytes(jobs):
        raise DeviceError(f"board {board.name}: {len(results)} bytes of results, {_blob_bytes(jobs)} expected")
    return results


def _refusal(board: Board, said: str) -> DeviceError:
    """The error of a program that ended with "...: status -21"."""
    found = re.search(r"status -(\d+)$", said)
    return DeviceError(f"board {board.name}: {said}") if found is None else refused(board, int(found[1]))


def _run_emulated(board: Board, jobs: Sequence[Job], directory: Path) -> bytes:
    image = build(board, Program.RUN, is_checked=True)
    return collect_results(image, _files(directory, jobs), _blob_bytes(jobs), directory)
