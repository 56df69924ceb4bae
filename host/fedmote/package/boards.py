# SPDX-License-Identifier: Apache-2.0
"""Budgets of boards, read from `device_sdk/boards/<name>/board.toml`, where each number has its only home."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedmote.errors import ConfigError
from fedmote.package.arrangement import OF_KERNELS
from fedmote.wire.schema import Arrangement, Opcode

Arithmetic = Literal["float32", "int16"]
_SAMPLES_HEAD_BYTES = 16  # magic, count, bytes of an input, CRC-32


@dataclass(frozen=True)
class Region:
    """A part of a board's address space outside the image.

    Attributes:
        address: of its first byte.
        bytes: its size.
    """

    address: int
    bytes: int


@dataclass(frozen=True)
class Emulation:
    """How an emulator runs a board.

    Attributes:
        machine: the emulator's name of the board.
        icount_shift: where time passes by instructions, each takes 2**icount_shift ns.
        counter0_hz, counter1_hz: rates of the two counters of the board, in the emulator.
    """

    machine: str
    icount_shift: int
    counter0_hz: int
    counter1_hz: int


@dataclass(frozen=True)
class Board:
    """What a board offers. Bytes everywhere; `board.toml` explains each number.

    Attributes:
        name: as in `--board` and in the device's hello.
        core: "host" or the compiler's name of the core, e.g. "cortex-m4".
        has_fpu: whether float32 arithmetic is in hardware.
        kernels: "portable", or the variant of the kernels in its images; decides the order of the weights (`arrangement`).
        operators: of its device image, by the names of their files ("conv_2d"), or ("all",).
        programs: names of its images and programs; `fedmote_hil.build.Program` has them all.
        flash_bytes, ram_bytes: of the part.
        slot_bytes: one of the two package slots, its commit record included.
        arena_bytes: the arena of the training image (link buffers, encoder, head, samples).
        run_arena_bytes: the arena of the inference image (encoder only).
        max_samples: local samples at most.
        body_max: largest message body.
        stack_bytes: reserved for the stack.
        regions: named parts of the address space ("identity", "package", "samples", ...); empty where files stand for them.
        is_checking_signatures: whether its device image can check who signed a package.
        is_masking: whether its device image can take part in masked sums.
        is_unaligned_trapped: whether unaligned accesses trap though the core could do them.
        journal_bytes: one of the two regions of its journal; 0: it has none.
        peripherals: addresses and pins that the chip's port asks for; nothing on the host does.
        emulator: how an emulator runs it, or None.
        flash_command: command that writes `{file}` to `{address}` of the real part, or None.
        hse_hz: frequency of the crystal, or None.
        baud: of the board's serial line, or None where it has no UART.
    """

    name: str
    core: str
    has_fpu: bool
    kernels: str
    operators: tuple[str, ...]
    programs: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    slot_bytes: int
    arena_bytes: int
    run_arena_bytes: int
    max_samples: int
    body_max: int
    stack_bytes: int
    regions: dict[str, Region] = field(default_factory=dict)
    is_checking_signatures: bool = False
    is_masking: bool = False
    is_unaligned_trapped: bool = False
    journal_bytes: int = 0
    peripherals: dict[str, int] = field(default_factory=dict)
    emulator: Emulation | None = None
    flash_command: str | None = None
    hse_hz: int | None = None
    baud: int | None = None

    @classmethod
    def load(cls, name: str) -> Board:
        """Reads the board called `name`.

        Raises:
            ConfigError: no such board, or a board file with a missing, unknown or wrongly typed key.
        """
        path = sdk_root() / "boards" / name / "board.toml"
        if name not in board_names():
            raise ConfigError(f"no board called {name!r}; there are: {', '.join(board_names())}")
        return cls.parse(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> Board:
        """Reads the text of a board file; `origin` names it in messages."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{origin}: {error}") from error
        values["regions"] = {
            key: Region(**_checked(region, {"address": int, "bytes": int}, f"{origin}: regions.{key}"))
            for key, region in values.get("regions", {}).items()
        }
        if "emulator" in values:
            values["emulator"] = Emulation(**_checked(values["emulator"], _EMULATION, f"{origin}: emulator"))
        for section, key, kind, flat in _SECTIONS:
            if section in values:
                values[flat] = _checked(values.pop(section), {key: kind}, f"{origin}: {section}")[key]
        for key in ("operators", "programs"):
            if isinstance(values.get(key), str):
                values[key] = tuple(values[key].split())
        _check_words(values, origin)
        optional = {key: kind for key, kind in _OPTIONAL.items() if key in values}
        return cls(**_checked(values, _REQUIRED | optional, origin))

    @property
    def arrangement(self) -> Arrangement:
        """The order of weights that its kernels want."""
        return OF_KERNELS[self.kernels]

    @property
    def can_count_boots(self) -> bool:
        """Whether a virtual one has memory for a journal that outlives a restart; without a count of boots nothing is sealed."""
        if not self.journal_bytes:
            return False
        return "ram_slots" not in self.regions or "ram_journal" in self.regions

    def has_operator(self, opcode: Opcode) -> bool:
        """Whether its device image has an operator."""
        return self.operators == ("all",) or opcode.name.lower() in self.operators

    @property
    def arithmetic(self) -> Arithmetic:
        """What the board trains its head in: floats where they are in hardware."""
        return "float32" if self.has_fpu else "int16"

    def samples_for(self, input_bytes: int) -> int:
        """How many samples of that size the board can hold: `max_samples`, or as many as fit its region (SPEC.md, section 8)."""
        if "samples" not in self.regions:
            return self.max_samples
        room = self.regions["samples"].bytes - _SAMPLES_HEAD_BYTES
        most = min(self.max_samples, max(0, room // (input_bytes + 1)))  # each with a label, a byte
        while most and most + -most % 4 + most * input_bytes > room:  # the labels end at a multiple of 4
            most -= 1
        return most

    def region(self, name: str) -> Region:
        """The region called `name`.

        Raises:
            ConfigError: the board has none of that name, e.g. because files stand for its regions.
        """
        if name not in self.regions:
            raise ConfigError(f"board {self.name} has no region {name!r}; it has: {', '.join(self.regions) or 'none'}")
        return self.regions[name]


_REQUIRED: dict[str, type] = {
    "name": str,
    "core": str,
    "has_fpu": bool,
    "kernels": str,
    "operators": tuple,
    "programs": tuple,
    **dict.fromkeys(
        (
            "flash_bytes",
            "ram_bytes",
            "slot_bytes",
            "arena_bytes",
            "run_arena_bytes",
            "max_samples",
            "body_max",
            "stack_bytes",
        ),
        int,
    ),
}
# Sections of one key: section, key, type, name of the attribute.
_SECTIONS: tuple[tuple[str, str, type, str], ...] = (
    ("flash", "command", str, "flash_command"),
    ("clock", "hse_hz", int, "hse_hz"),
    ("uart", "baud", int, "baud"),
)
_OPTIONAL: dict[str, type] = {
    "regions": dict,
    "is_checking_signatures": bool,
    "is_masking": bool,
    "is_unaligned_trapped": bool,
    "journal_bytes": int,
    "peripherals": dict,
    "emulator": Emulation,
} | {flat: kind for _, _, kind, flat in _SECTIONS}
_EMULATION: dict[str, type] = {"machine": str, "icount_shift": int, "counter0_hz": int, "counter1_hz": int}


def _check_words(values: dict[str, Any], where: str) -> None:
    """Refuses kernels and operators that do not exist; what is of another type is refused elsewhere."""
    if isinstance(values.get("kernels"), str) and values["kernels"] not in OF_KERNELS:
        raise ConfigError(f"{where}: kernels = {values['kernels']!r}; there are: {', '.join(OF_KERNELS)}")
    operators = values.get("operators")
    known = [opcode.name.lower() for opcode in Opcode]
    if isinstance(operators, tuple) and operators != ("all",):
        for name in operators or ("",):
            if name not in known:
                raise ConfigError(f"{where}: operators: there is no {name!r}; there are: all, {', '.join(known)}")


def _checked(values: dict[str, Any], types: dict[str, type], where: str) -> dict[str, Any]:
    """`values`, if its keys are those of `types` and its values of these types."""
    for key in values.keys() - types.keys():
        raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(types)}")
    for key, kind in types.items():
        if key not in values:
            raise ConfigError(f"{where}: key {key!r} is missing")
        if type(values[key]) is not kind:
            raise ConfigError(f"{where}: {key} = {values[key]!r} should be of type {kind.__name__}")
    return values


def sdk_root() -> Path:
    """The folder of the device SDK: the checkout's `device_sdk`, or the copy inside an installed distribution.

    Raises:
        ConfigError: neither is there, so this installation is incomplete.
    """
    here = Path(__file__).resolve()
    for candidate in (here.parents[3] / "device_sdk", here.parents[1] / "_device_sdk"):
        if (candidate / "boards").is_dir():
            return candidate
    raise ConfigError("the device SDK is missing: run from a checkout or install the fedmote distribution again")


def board_names() -> list[str]:
    """Names of all boards, sorted."""
    return sorted(path.parent.name for path in (sdk_root() / "boards").glob("*/board.toml"))


def boards_with(program: str) -> list[str]:
    """Names of the boards that have a program ("fedmote-device", ...), sorted."""
    return [name for name in board_names() if program in Board.load(name).programs]
