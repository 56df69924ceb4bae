# SPDX-License-Identifier: Apache-2.0
"""Instructions of one inference on a board, and the flash of its images, without the board: from tables that were measured.

    instructions = inference + sum over operators of ( sum over loops of turns * coefficient )

Turns follow from the plan (`loops`); coefficients are of a board's kernels as a compiler made them, fitted to counts of an
emulated board by `fedmote bench instructions`, which writes `instructions.json` beside the `board.toml`:

    {"inference": 18,                                what one costs beside its operators
     "paths": {"fully_connected":                    a kernel, and its way through its file
        {"operators": 40, "held_out": 10,            counted for the fit, and beside it
         "largest_error": 0.004,                     of those that were held out, as a share of their counts
         "instructions": {"operator": 210.1, "four": 96.0, "four_group": 19.0}}},
     "compiler": "arm-none-eabi-gcc ...", "sources": "hash of the kernels' sources"}

A board whose kernels were counted to do what another board's do has `"counts_as": "mps2-m3"` in the place of a table. Nothing
here is time: see hil/README.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names, sdk_root
from fedmote.package.compile import Plan
from fedmote.package.loops import CORTEX_M0, PORTABLE, Loops, Subject, Work
from fedmote.package.loops_dsp import CORTEX_M_DSP
from fedmote.package.loops_helium import CORTEX_M_HELIUM
from fedmote.package.plan_check import PLAN_HEADER_BYTES
from fedmote.package.records import record_words, unpack_record
from fedmote.wire.schema import Arrangement, Opcode

TABLE_FILE: Final = "instructions.json"
SIZES_FILE: Final = "sizes.json"
_COMMAND: Final = "run: fedmote bench instructions --board"
OPERATOR: Final = "operator"  # the coefficient of what an operator costs beside its loops

# By the `kernels` of a board file.
LOOPS: Final[dict[str, dict[Opcode, Loops]]] = {
    "portable": PORTABLE,
    "cortex_m0": CORTEX_M0,
    "cortex_m_dsp": CORTEX_M_DSP,
    "cortex_m_helium": CORTEX_M_HELIUM,
}

# What decides how many instructions a kernel takes, beside the compiler and its options: below device_sdk.
_SOURCES = (
    "src/kernels/*",
    "src/encoder.*",
    "src/operators/operator.c",
    "src/little_endian.h",
    "include/fedmote/fedmote_operators.h",
)
_NOT_SOURCES = ("head_rows.", "head_rows_", "head_tiles.", "head_tiles_")


@dataclass(frozen=True)
class Prediction:
    """Instructions of one inference.

    Attributes:
        total: of the whole encoder.
        operators: of each record, as `Plan.units` has them; the total is their sum and what an inference costs beside them.
    """

    total: int
    operators: tuple[int, ...]


@dataclass(frozen=True)
class Coefficients:
    """What was measured of a kernel on one way through its file.

    Attributes:
        operators: that the coefficients were fitted to.
        held_out: further operators that they were compared with.
        largest_error: among the latter, as a share of what was counted.
        instructions: of one turn of each loop, by the names of `loops`; `OPERATOR` is what an operator costs beside them.
    """

    operators: int
    held_out: int
    largest_error: float
    instructions: dict[str, float]


@dataclass(frozen=True)
class Table:
    """What was measured on a board.

    Attributes:
        inference: instructions of an inference beside those of its operators.
        paths: by the names of `loops.Work`.
        compiler: first line of what the compiler says of itself.
        sources: `sources_hash` of the kernels that were counted.
    """

    inference: int
    paths: dict[str, Coefficients]
    compiler: str
    sources: str


@dataclass(frozen=True)
class ImageBytes:
    """Flash that a board's images take, as linked, with every operator and without cryptography.

    Attributes:
        device: of the federated device, or None where the board has no such image.
        run: of the inference image, or None.
        compiler: first line of what the compiler says of itself.
    """

    device: int | None
    run: int | None
    compiler: str


def predict(plan: Plan, board: Board) -> Prediction:
    """Instructions of one inference of a plan that was compiled for a board's arrangement.

    Raises:
        ConfigError: the board has no table, the table has nothing for a loop that the plan needs, or the plan was compiled for
            other kernels.
    """
    table = load_table(board)
    if plan.header.arrangement != board.arrangement:
        raise ConfigError(
            f"board {board.name} runs plans of {board.arrangement.name}, not of {Arrangement(plan.header.arrangement).name}"
        )
    operators = []
    for subject, (name, *_) in zip(subjects_of(plan, board), plan.units, strict=True):
        work = work_of(subject, board)
        path = table.paths.get(work.path)
        unknown = [turn for turn, count in work.turns.items() if count and (path is None or turn not in path.instructions)]
        if path is None or unknown:
            raise ConfigError(
                f"{_file(board, TABLE_FILE)}: nothing was measured for {name}: {work.path}: {', '.join(unknown)};"
                f" {_COMMAND} {board.name}"
            )
        loops = sum(count * path.instructions[turn] for turn, count in work.turns.items() if count)
        operators.append(round(path.instructions[OPERATOR] + loops))
    return Prediction(table.inference + sum(operators), tuple(operators))


def has_table(board: Board) -> bool:
    """Whether instructions can be predicted for a board."""
    return _file(board, TABLE_FILE).is_file()


def work_of(subject: Subject, board: Board) -> Work:
    """The turns of the loops of an operator in a board's kernels."""
    return LOOPS[board.kernels][subject.opcode](subject)


def subjects_of(plan: Plan, board: Board) -> list[Subject]:
    """The operators of a plan, in order."""
    subjects, offset = [], PLAN_HEADER_BYTES
    for _, opcode, _, _ in plan.units:
        values = unpack_record(plan.records, offset, opcode).values
        channels = values.get("out_c", values.get("out_n", 0)) if "scaling" in values else 0
        scaling = np.frombuffer(plan.weights, "<i4", 3 * channels, values.get("scaling", 0)).astype(np.int64)
        subjects.append(Subject(opcode, values, scaling.reshape(channels, 3), not board.is_unaligned_trapped))
        offset += 4 * record_words(opcode)
    return subjects


def is_stale(board: Board) -> bool:
    """Whether the kernels of a board have changed since they were counted.

    Raises:
        ConfigError: the board has no table, or its file is not one.
    """
    return _content(board).get("sources") != sources_hash(board)


def _content(board: Board) -> dict[str, Any]:
    """The object in the file of a board's table."""
    content = _read(_file(board, TABLE_FILE))
    if content is None:
        raise ConfigError(f"board {board.name} has no {TABLE_FILE}; boards that have: {', '.join(boards_with_table())}")
    return content


def load_table(board: Board) -> Table:
    """The table of a board, its own or that of the board whose counts were found to be the same.

    Raises:
        ConfigError: there is none, or its file is not one.
    """
    content = _content(board)
    if "counts_as" in content:
        other = Board.load(content["counts_as"])
        if (other.kernels, other.core) != (board.kernels, board.core):
            raise ConfigError(f"{_file(board, TABLE_FILE)}: counts_as = {other.name!r} has another core or other kernels")
        return load_table(other)
    try:
        paths = {name: Coefficients(**path) for name, path in content["paths"].items()}
        return Table(**content | {"paths": paths})
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{_file(board, TABLE_FILE)}: not a table of instructions: {error}; {_COMMAND} {board.name}") from error


def boards_with_table() -> list[str]:
    """Names of the boards for which instructions can be predicted, sorted."""
    return [name for name in board_names() if has_table(Board.load(name))]


def image_bytes(board: Board) -> ImageBytes | None:
    """Flash of a board's images, or None where nobody has measured it.

    Raises:
        ConfigError: the board's file of sizes is not one.
    """
    content = _read(_file(board, SIZES_FILE))
    if content is None:
        return None
    try:
        return ImageBytes(content["device_image_bytes"], content["run_image_bytes"], content["compiler"])
    except KeyError as error:
        raise ConfigError(f"{_file(board, SIZES_FILE)}: {error} is missing; {_COMMAND} {board.name}") from error


def sources_hash(board: Board) -> str:
    """Hash of the sources that decide a board's counts: kernels, the encoder's loop and the order of operators."""
    root = sdk_root()
    patterns = [*_SOURCES, *([] if board.kernels == "portable" else [f"variants/{board.kernels}/*"])]
    paths = sorted({path for pattern in patterns for path in root.glob(pattern) if not path.name.startswith(_NOT_SOURCES)})
    digest = hashlib.blake2b(f"{board.core}\0{board.is_unaligned_trapped}\0".encode(), digest_size=12)
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _file(board: Board, name: str) -> Path:
    return sdk_root() / "boards" / board.name / name


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: an object is expected, not {type(content).__name__}")
    return content
