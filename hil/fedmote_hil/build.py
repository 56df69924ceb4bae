# SPDX-License-Identifier: Apache-2.0
"""Builds the images of a board with CMake and Ninja, once per content.

A build lives in a per-user cache under a key made of every file of the SDK, the board, the options and the compiler's version, so
an image is never older than its sources, and a second call costs one pass over the sources. A file lock lets parallel
callers wait for one build instead of breaking it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fedmote import places
from fedmote.errors import ConfigError, RigError
from fedmote.package.boards import Board, sdk_root

CROSS_COMPILER = "arm-none-eabi-gcc"
CRYPTO_RELEASE = "pymonocypher-4.0.3.4"
# How to get a tool that is missing: the command for Debian and its relatives, and PyPI where it is there.
_SOURCES = {
    CROSS_COMPILER: "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "gcc": "apt-get install gcc",
    "cmake": "pip install cmake, or apt-get install cmake",
    "ninja": "pip install ninja, or apt-get install ninja-build",
    "qemu-system-arm": "apt-get install qemu-system-arm",
}
# What the images are made of; the rest of the SDK (documents, vectors, other boards' builds) does not change them.
_SOURCE_PATTERNS = (
    "CMakeLists.txt",
    "cmake/**/*",
    "include/**/*",
    "src/**/*",
    "variants/**/*",
    "ports/**/*",
    "boards/**/*",
    "examples/**/*",
)


class Program(StrEnum):
    """The programs of a board: the federated device, `fedmote run`, and the two of `fedmote bench`."""

    DEVICE = "fedmote-device"
    RUN = "fedmote-run"
    BENCH_KERNELS = "fedmote-bench-kernels"
    BENCH_HEAD = "fedmote-bench-head"


@dataclass(frozen=True)
class Image:
    """A built program of a board.

    Attributes:
        board: whose it is.
        path: the executable (posix) or the ELF file.
        binary: the raw bytes for flashing, or None where the image is a process.
        build_directory: where the map and the stack usage files are.
    """

    board: Board
    path: Path
    binary: Path | None
    build_directory: Path


@dataclass(frozen=True)
class _Options:
    """What makes two builds of one board differ."""

    is_checked: bool
    crypto: Path | None
    footprint: str = ""  # operators of examples/footprint, which is then built in the place of the board's programs


def find_tool(name: str) -> str:
    """Path of a tool, looked for beside this Python and then on the search path.

    Raises:
        RigError: it is missing; the message says how to get it.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise RigError(f"{name} is missing: {_SOURCES.get(name, 'install it')}")
    return found


def build(board: Board | str, program: Program = Program.DEVICE, *, is_checked: bool = False, has_crypto: bool = True) -> Image:
    """Builds, or finds, an image.

    Args:
        board: the board or its name.
        program: which of its programs; not every board has all of them.
        is_checked: mistakes end the program with a report: on a process by the compiler's sanitizers, on an emulated board by
            semihosting instead of a blinking light; such an image needs an emulator.
        has_crypto: let the image check hashes where `fedmote_hil.crypto` has fetched the library for it.

    Raises:
        RigError: a tool is missing, or the build fails; then with the compiler's words.
        ConfigError: no such board, or it has no such program.
    """
    board = Board.load(board) if isinstance(board, str) else board
    if program not in board.programs:
        raise ConfigError(f"board {board.name} has no {program}; it has: {', '.join(board.programs)}")
    directory = _build_once(board, _Options(is_checked, crypto_sources() if has_crypto else None))
    if _is_host(board):
        return Image(board, directory / program, None, directory)
    return Image(board, directory / f"{program}.elf", directory / f"{program}.bin", directory)


def build_footprint(board: Board, operators: Sequence[str]) -> tuple[Image, Image]:
    """Builds, or finds, examples/footprint with operators (names of device_sdk/src/operators), and the empty image beside it.

    Raises:
        RigError: a tool is missing, or the build fails.
        ConfigError: no operator is named, or the board has no image.
    """
    if not operators or _is_host(board):
        raise ConfigError(f"board {board.name}: a footprint is that of one operator or more, in the image of a part")
    directory = _build_once(board, _Options(is_checked=False, crypto=None, footprint=" ".join(sorted(set(operators)))))
    names = ("fedmote-footprint", "fedmote-footprint-empty")
    first, second = (Image(board, directory / f"{name}.elf", directory / f"{name}.bin", directory) for name in names)
    return first, second


def _is_host(board: Board) -> bool:
    return board.core == "host"


def _build_once(board: Board, options: _Options) -> Path:
    """The directory of the finished build."""
    compiler = find_tool("gcc" if _is_host(board) else CROSS_COMPILER)
    cache = cache_directory()
    directory = cache / f"{board.name}-{_key(board, options, compiler)}"
    done = directory / "done"
    if done.exists():
        done.touch()  # still in use: see _drop_old()
        return directory
    with _locked(cache / f"{directory.name}.lock"):
        if not done.exists():
            _configure_and_build(board, options, compiler, directory)
            done.touch()
            _drop_old(cache)
    return directory


def cache_directory() -> Path:
    """Where builds are kept.

    Raises:
        RigError: no place can be written.
    """
    return places.cache_directory("build")


def crypto_sources() -> Path | None:
    """Folder of Monocypher's two files, or None where `python -m fedmote_hil.crypto` has not put them there."""
    folder = cache_directory() / CRYPTO_RELEASE
    return folder if (folder / "monocypher.c").is_file() and (folder / "monocypher.h").is_file() else None


def _key(board: Board, options: _Options, compiler: str) -> str:
    """Hash of everything that decides what the image is."""
    digest = hashlib.blake2b(digest_size=12)
    root = sdk_root()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    # The place counts as well: CMake refuses a build directory whose sources are elsewhere.
    for part in (board.name, str(options), str(root)):
        digest.update(part.encode() + b"\0")
    digest.update(version)
    for pattern in _SOURCE_PATTERNS:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and path.suffix != ".json":  # what was measured of images is no part of them
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the system frees it if the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _configure_and_build(board: Board, options: _Options, compiler: str, directory: Path) -> None:
    root = sdk_root()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    shutil.rmtree(directory, ignore_errors=True)  # a build that was interrupted
    configure = [cmake, "-S", str(root), "-B", str(directory), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-DFEDMOTE_BOARD={board.name}", f"-DFEDMOTE_CHECKED={'ON' if options.is_checked else 'OFF'}"]
    configure.append(f"-DFEDMOTE_MONOCYPHER={options.crypto or ''}")
    configure.append(f"-DFEDMOTE_FOOTPRINT_OPERATORS={options.footprint}")
    # Another compiler's warnings are not a reason to refuse a user's build; our own tests build strictly.
    configure += ["-DFEDMOTE_STRICT=OFF"]
    if _is_host(board):
        configure.append(f"-DCMAKE_C_COMPILER={compiler}")
    else:
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={root / 'cmake' / 'arm-none-eabi.cmake'}")
    for command in (configure, [ninja, "-C", str(directory)]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-20:])
            raise RigError(f"building for {board.name} failed: {' '.join(command)}\n{tail}")


def _drop_old(cache: Path, keep: int = 64) -> None:
    """Drops all but the builds that were used last; a process that runs from a dropped file keeps it."""
    builds = sorted(cache.glob("*/done"), key=lambda path: path.stat().st_mtime, reverse=True)
    for done in builds[keep:]:
        shutil.rmtree(done.parent, ignore_errors=True)
