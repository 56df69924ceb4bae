# SPDX-License-Identifier: Apache-2.0
"""What the SDK costs on a part: `device_sdk/SIZES.md`, from the linker's map of the stm32f405 image.

    python -m fedmote_hil.sizes            writes the file
    python -m fedmote_hil.sizes --check    fails where the committed file differs, for the compiler version that it names

Flash is counted after the linker has dropped what nobody uses. What the SDK needs of the C library and of the compiler's own
library is counted with it; drivers and start-up are the board's.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedmote.errors import FedmoteError, RigError
from fedmote.package.boards import Board, sdk_root
from fedmote.wire.schema import Opcode
from fedmote_hil.build import CROSS_COMPILER, Image, build, find_tool

BOARD = "stm32f405"
FLASH_LIMIT_BYTES = 32 * 1024  # of the SDK with its share of the libraries, for the operators of the example model
# Operators of `har_cnn`; the image has all, but a program links only those that its table names.
EXAMPLE_OPERATORS = (Opcode.CONV_2D, Opcode.MAX_POOL_2D, Opcode.MEAN)
# What the image's port names and a program need not: packages that travel as differences, what outlives a reset.
PATCHING = ("difference.c", "patch.c")
JOURNAL = ("journal.c",)
SEALING = ("seal.c",)
MASKING = ("masks.c",)
_LARGEST_FRAMES = 8

# " .text.name   0x08000100   0x3c  path/to/object", the name sometimes on a line of its own
_INPUT_SECTION = re.compile(r"^ (\.\S+|COMMON)\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+) (\S.*)$")
_OUTPUT_SECTION = re.compile(r"^(\.\S+)")
_FILL = re.compile(r"^ \*fill\*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)")
_MEMBER = re.compile(r"([^/()]+)\(([^()]+)\)$")


@dataclass
class Sizes:
    """Bytes by the file they come from; keys are (owner, file), owner "sdk", "library" or "board"."""

    flash: Counter[tuple[str, str]] = field(default_factory=Counter)
    ram: Counter[tuple[str, str]] = field(default_factory=Counter)

    def operators(self, opcodes: Iterable[Opcode]) -> int:
        """Bytes of flash of the kernels and checks of operators."""
        names = {opcode.name.lower() for opcode in opcodes}
        return sum(size for (owner, file), size in self.flash.items() if owner == "sdk" and kernel_of(file)[0] in names)

    def files(self, names: Iterable[str]) -> int:
        """Bytes of flash of files of the SDK."""
        return sum(self.flash["sdk", file] for file in names)

    def total(self, kind: str, owners: tuple[str, ...]) -> int:
        """Sum of "flash" or "ram" over the owners."""
        counter = self.flash if kind == "flash" else self.ram
        return sum(size for (owner, _), size in counter.items() if owner in owners)


def read_map(text: str) -> Sizes:
    """Sizes from the text of a GNU linker map."""
    sizes = Sizes()
    output = ""
    joined = re.sub(r"^( \.\S+)\n\s+", r"\1 ", text[text.index("Linker script and memory map") :], flags=re.MULTILINE)
    for line in joined.splitlines():
        if started := _OUTPUT_SECTION.match(line):
            output = started[1]
        elif (found := _INPUT_SECTION.match(line)) and int(found[3], 16) > 0:
            _count(sizes, output, _owner(found[4]), int(found[3], 16))
        elif fill := _FILL.match(line):
            _count(sizes, output, ("board", "padding between objects"), int(fill[1], 16))
    return sizes


def _count(sizes: Sizes, output: str, owner: tuple[str, str], size: int) -> None:
    if output in (".text", ".ARM.exidx", ".data"):
        sizes.flash[owner] += size
    if output in (".data", ".bss", ".noinit"):
        sizes.ram[owner] += size


def _owner(path: str) -> tuple[str, str]:
    member = _MEMBER.search(path)
    if member is None:
        return "board", Path(path).name.removesuffix(".obj")
    library, file = member[1], member[2].removesuffix(".obj")
    return ("sdk", file) if library == "libfedmote.a" else ("library", library.removesuffix(".a"))


def kernel_of(file: str) -> tuple[str, str]:
    """Name of a kernel and of its variant, from the name of its file: conv_2d.c, conv_2d_cortex_m_dsp.c."""
    name = file.removesuffix(".c")
    for variant in _variants():
        if name.endswith(f"_{variant}"):
            return name.removesuffix(f"_{variant}"), variant
    return name, "portable"


@functools.cache
def _variants() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (sdk_root() / "variants").iterdir()))


def largest_frames(directory: Path, count: int = _LARGEST_FRAMES) -> list[tuple[str, int]]:
    """Functions of the SDK with the largest stack frames, largest first: (file: function, bytes)."""
    frames: list[tuple[str, int]] = []
    for path in directory.glob("CMakeFiles/fedmote_device.dir/**/*.su"):
        for line in path.read_text(encoding="utf-8").splitlines():
            where, size, kind = line.split("\t")
            if kind != "static":
                raise RigError(f"{where} has a stack frame of unknown size ({kind})")
            name = where.split(":")
            frames.append((f"{Path(name[0]).name}: {name[-1]}", int(size)))
    return sorted(frames, key=lambda frame: (-frame[1], frame[0]))[:count]


def compiler_version() -> str:
    """First line of what the cross compiler says of itself.

    Raises:
        RigError: it is missing.
    """
    compiler = find_tool(CROSS_COMPILER)
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def document(image: Image, sizes: Sizes, frames: list[tuple[str, int]], compiler: str) -> str:
    """The text of SIZES.md."""
    board = image.board
    flash = sizes.total("flash", ("sdk", "library"))
    ram = sizes.total("ram", ("sdk", "library"))
    slots, journal = board.region("ram_slots").bytes, board.region("ram_journal").bytes
    lines = [
        "<!-- Generated by python -m fedmote_hil.sizes; SPDX-License-Identifier: Apache-2.0 -->",
        "# What the SDK costs",
        "",
        f"Image `fedmote-device` of board {board.name} ({board.core}; kernels and encoder -O2, all else -Os), linked with",
        "section garbage collection.",
        f"Compiler: {compiler}",
        "",
        f"**SDK for a model of {_listed(EXAMPLE_OPERATORS)}, with its share of the C library:",
        f"{promised(sizes):,} bytes of flash** (limit {FLASH_LIMIT_BYTES:,}, cryptography not counted) and {ram:,} bytes of",
        f"static RAM of its own; all other RAM is the caller's. With every operator, as in this image: {flash:,} bytes.",
        "A program links the operators that its table names; and, where its port names it, what makes packages from",
        f"differences ({', '.join(PATCHING)}): {sizes.files(PATCHING):,} bytes more than the first number; so it is with what",
        f"keeps boots and updates over a reset ({', '.join(JOURNAL)}): {sizes.files(JOURNAL):,} bytes; and with what seals",
        f"messages ({', '.join(SEALING)}): {sizes.files(SEALING):,} bytes, and what masks updates in the sums of a group",
        f"({', '.join(MASKING)}): {sizes.files(MASKING):,} bytes, beside the library of the cryptography.",
        "",
        "## Operators",
        "",
        *_table(("kernel and check of", "bytes of flash"), [(op.name.lower(), sizes.operators([op])) for op in Opcode]),
        "",
        "## Flash",
        "",
        *_table(("part", "bytes"), [(file, size) for (owner, file), size in sizes.flash.most_common() if owner == "sdk"]),
        *_rows([(f"{name} (library)", size) for (owner, name), size in sizes.flash.most_common() if owner == "library"]),
        *_rows([("**SDK**", flash)]),
        *_rows([(f"{file} (board)", size) for (owner, file), size in sizes.flash.most_common() if owner == "board"]),
        *_rows([("**image**", flash + sizes.total("flash", ("board",)))]),
        "",
        "## Static RAM",
        "",
        *_table(
            ("part", "bytes"),
            [(file, size) for (_, file), size in sizes.ram.most_common()]
            + [
                ("two package slots (emulator only; flash on the part)", slots),
                ("journal (emulator only; flash on the part)", journal),
                ("stack, reserved", board.stack_bytes),
            ],
        ),
        *_rows([("**of 131,072**" if board.ram_bytes == 131072 else "**sum**", _ram_total(sizes, board))]),
        "",
        f"`device_main.c` holds the arena ({board.arena_bytes:,} bytes) and `struct fedmote`.",
        "",
        "## Largest stack frames of the SDK",
        "",
        *_table(("function", "bytes"), frames),
        "",
    ]
    return "\n".join(lines)


def promised(sizes: Sizes) -> int:
    """Bytes of flash of the SDK with the operators of the example model alone, told from an image with everything.

    What other operators share stays counted: never too few.
    """
    others = [opcode for opcode in Opcode if opcode not in EXAMPLE_OPERATORS]
    return (
        sizes.total("flash", ("sdk", "library")) - sizes.operators(others) - sizes.files(PATCHING + JOURNAL + SEALING + MASKING)
    )


def _listed(opcodes: Iterable[Opcode]) -> str:
    return ", ".join(opcode.name.lower() for opcode in opcodes)


def _ram_total(sizes: Sizes, board: Board) -> int:
    return sum(sizes.ram.values()) + board.region("ram_slots").bytes + board.region("ram_journal").bytes + board.stack_bytes


def _table(heads: tuple[str, str], rows: list[tuple[str, int]]) -> list[str]:
    return [f"| {heads[0]} | {heads[1]} |", "| --- | ---: |", *_rows(rows)]


def _rows(rows: list[tuple[str, int]]) -> list[str]:
    return [f"| {name} | {size:,} |" for name, size in rows]


def main(arguments: list[str]) -> int:
    """Writes or checks SIZES.md; returns the exit code."""
    path = sdk_root() / "SIZES.md"
    compiler = compiler_version()
    if "--check" in arguments and path.exists() and compiler not in path.read_text(encoding="utf-8"):
        sys.stderr.write(f"sizes: not compared, SIZES.md is for another compiler than {compiler}\n")
        return 0
    image = build(BOARD, has_crypto=False)
    sizes = read_map((image.build_directory / "fedmote-device.map").read_text(encoding="utf-8"))
    text = document(image, sizes, largest_frames(image.build_directory), compiler)
    if (flash := promised(sizes)) > FLASH_LIMIT_BYTES:
        sys.stderr.write(f"sizes: the SDK needs {flash} bytes of flash, {FLASH_LIMIT_BYTES} are promised\n")
        return 1
    if "--check" not in arguments:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.stderr.write("sizes: SIZES.md is out of date; run: python -m fedmote_hil.sizes\n")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FedmoteError as error:
        sys.exit(f"sizes: {error}")
