# SPDX-License-Identifier: Apache-2.0
"""`fedmote demo`: the whole story on this machine."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, boards_with
from fedmote.transport.broker import find_mosquitto

SUMMARY = "real data, three cells, emulated boards, one merge: the whole story on this machine"
_PROGRAM = "fedmote-device"  # of the boards that can take part
EXAMPLES = """examples:
  fedmote demo                                          digits, three cells, two emulated boards, ten rounds
  fedmote demo --rounds 3 --boards posix --out story    shorter, native devices, every file of the runs kept in story/
  fedmote demo --data windows.npz --seeds 0-4 --json    other data, five seeds, for programs
"""

# Centaur's two forms. A strategy of partners alone would have nothing to train: here partners hold no data of their own.
STRATEGIES: dict[str, Literal["alternating", "simultaneous"]] = {"centaur": "simultaneous", "centaur-alternating": "alternating"}
_MAX_SEEDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("--rounds", type=int, metavar="N", help="merges to make (default: 10)")
    parser.add_argument("--data", default="digits", metavar="digits|FILE.npz", help="x (N, ...), y (N,) and whose each sample is")
    parser.add_argument(
        "--boards",
        default="stm32f405,posix",
        metavar="B[,B]",
        help="of cells a and b, then of cell c: " + ", ".join(boards_with(_PROGRAM)),
    )
    parser.add_argument("--strategy", default="centaur", metavar="NAME", help=", ".join(STRATEGIES))
    parser.add_argument("--seed", type=int, metavar="S", help="of data, first model and all draws (default: 0)")
    parser.add_argument("--seeds", metavar="A-B", help="several seeds: mean and spread; those after the first run natively")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep plot, result and every file of the runs here")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


@dataclass(frozen=True)
class Choice:
    """The checked arguments.

    Attributes:
        boards: of cells a, b and c.
        form: of the strategy.
        seeds: at least one.
        rounds: merges, or None for the default.
    """

    boards: tuple[str, str, str]
    form: Literal["alternating", "simultaneous"]
    seeds: tuple[int, ...]
    rounds: int | None


def run(options: argparse.Namespace) -> int:
    """Plays the demonstration. An interrupt ends every process that was started."""
    choice = check(options)
    if options.out is not None:
        _make(options.out)
        _play(options, choice, options.out.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="fedmote-demo-") as directory:
            _play(options, choice, Path(directory))
    return 0


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be made ({error.strerror})") from error


def check(options: argparse.Namespace) -> Choice:
    """The arguments, before anything is imported or started; ConfigError names what was expected."""
    names = [name.strip() for name in options.boards.split(",") if name.strip()]
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"--boards {options.boards!r}: one or two names are expected, of {', '.join(boards_with(_PROGRAM))}")
    for name in names:
        if _PROGRAM not in Board.load(name).programs:
            raise ConfigError(f"--boards: {name} has no {_PROGRAM}; these have: {', '.join(boards_with(_PROGRAM))}")
    if options.strategy not in STRATEGIES:
        raise ConfigError(f"--strategy {options.strategy!r}: one of {', '.join(STRATEGIES)} is expected")
    if options.rounds is not None and not 1 <= options.rounds <= 1000:
        raise ConfigError(f"--rounds {options.rounds}: 1 to 1000 are expected")
    return Choice((names[0], names[0], names[-1]), STRATEGIES[options.strategy], _seeds(options), options.rounds)


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    if options.seeds is None:
        if options.seed is not None and not 0 <= options.seed < 2**32:
            raise ConfigError(f"--seed {options.seed}: 0 to 4294967295 is expected")
        return (options.seed or 0,)
    if options.seed is not None:
        raise ConfigError("--seed and --seeds exclude each other")
    found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", options.seeds)
    if not found or not 1 <= int(found[2]) - int(found[1]) < _MAX_SEEDS:
        raise ConfigError(f"--seeds {options.seeds!r}: A-B is expected, 2 to {_MAX_SEEDS} seeds, for example 0-4")
    return tuple(range(int(found[1]), int(found[2]) + 1))


def _play(options: argparse.Namespace, choice: Choice, directory: Path) -> None:
    try:
        from fedmote.lab.demo import plot, report, story
    except ModuleNotFoundError as error:
        raise ConfigError(f"the demonstration needs {error.name}: pip install 'fedmote[demo]'") from error
    boards, has_broker, left_out = feasible(choice.boards)
    for one in left_out:
        _say(f"left out: {one}")
    result = story.tell(
        options.data, dict(zip("abc", boards, strict=True)), has_broker, choice.form, choice.seeds, choice.rounds, directory, _say
    )
    made = report.Report(options.strategy, result.data, result.scene, result.seeds, result.footprint, left_out, versions())
    content = made.to_json()
    picture = directory / "demo.png" if options.out is not None else Path(f"fedmote-demo-{result.data['name']}.png").resolve()
    plot.draw(made, picture)
    content["plot"] = str(picture)
    (directory / "result.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = report.words(made) + f"\nplot: {picture}\n"
    if options.json:
        _say(text)
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        sys.stdout.write(text)


def feasible(boards: tuple[str, str, str]) -> tuple[tuple[str, ...], bool, list[str]]:
    """What this machine can run: boards by cell, whether there is a broker, and in words what is left out."""
    left_out = []
    missing = [tool for tool in ("qemu-system-arm", "arm-none-eabi-gcc") if shutil.which(tool) is None]
    chosen = tuple("posix" if missing and Board.load(name).emulator is not None else name for name in boards)
    if chosen != boards:
        names = ", ".join(sorted(set(boards) - set(chosen)))
        left_out.append(f"emulated boards ({names}): {' and '.join(missing)} missing; the devices are native processes instead")
    has_broker = find_mosquitto() is not None
    if not has_broker:
        left_out.append("MQTT: mosquitto is missing; participants are on direct tcp links instead")
    return chosen, has_broker, left_out


def versions() -> dict[str, str]:
    """Of what took part."""
    found = {"python": platform.python_version()}
    for name in ("fedmote", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    tools = {
        "qemu": ["qemu-system-arm", "--version"],
        "cross_compiler": ["arm-none-eabi-gcc", "--version"],
        "compiler": ["cc", "--version"],
    }
    if (broker := find_mosquitto()) is not None:
        tools["broker"] = [str(broker), "-h"]
    for name, command in tools.items():
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            found[name] = (done.stdout or done.stderr).strip().splitlines()[0]
    return found


def _say(text: str) -> None:
    """Talk and progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
