# SPDX-License-Identifier: Apache-2.0
"""The `fedmote` command: finds the verb, runs it, turns errors into one line and an exit code.

Verbs are modules named in the entry-point group `fedmote.verbs`, with `SUMMARY`, `EXAMPLES` (the end of the help),
`add_arguments(parser)` and `run(options) -> int`. Only the verb that is asked for is imported. `fedmote --help` lists the
summaries without importing anything: it reads them from the modules' sources, so that torch is not loaded to print a line
about it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol, cast

import fedmote
from fedmote.errors import FedmoteError

GROUP = "fedmote.verbs"
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_LINK = 3
EXIT_BUG = 4
EXIT_FULL = 5
EXIT_INTERRUPTED = 130


class Verb(Protocol):
    """What a verb's module has."""

    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: without the program's name; those of the process where None.

    Returns:
        0 done, 1 refused, 2 usage or configuration, 3 link or board, 4 our bug, 5 disk full, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {point.name: point for point in entry_points(group=GROUP)}
    name = next((word for word in given if not word.startswith("-")), None)
    try:
        if name is None or given[0].startswith("-"):
            return _top(given, verbs)
        if name not in verbs:
            _complain(f"no verb {name!r}; there are {', '.join(sorted(verbs))}")
            return EXIT_USAGE
        with _orderly_ends():
            return _run_verb(name, verbs[name], given[1:])
    except FedmoteError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader went away; what is left must not complain at exit
        return EXIT_REFUSED  # whether the verb would have reached its goal, nobody knows
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _confess(error)
        _complain(f"{error.filename or 'standard output or a temporary file'}: the disk is full")
        return EXIT_FULL
    except Exception as error:  # the last line of defence: anything that ends here is a bug of ours
        return _confess(error)


def _confess(error: Exception) -> int:
    _complain(f"our bug: {type(error).__name__}: {error} ({_place(error)}); FEDMOTE_TRACE=1 shows the whole trace")
    if os.environ.get("FEDMOTE_TRACE"):
        traceback.print_exception(error)
    return EXIT_BUG


@contextlib.contextmanager
def _orderly_ends() -> Iterator[None]:
    """SIGTERM ends a verb as an interrupt does, so that its child processes and temporary files go with it."""
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run_verb(name: str, point: EntryPoint, given: Sequence[str]) -> int:
    try:
        verb = cast(Verb, point.load())
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fedmote"):
            raise
        _complain(f"{name} needs {error.name}, which is not installed; see `fedmote doctor`")
        return EXIT_USAGE
    parser = argparse.ArgumentParser(
        prog=f"fedmote {name}",
        description=verb.SUMMARY,
        epilog=verb.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(given))


def _top(given: Sequence[str], verbs: dict[str, EntryPoint]) -> int:
    lines = [f"  {name:<12}{_summary(point)}" for name, point in sorted(verbs.items())]
    parser = argparse.ArgumentParser(
        prog="fedmote",
        usage="fedmote VERB [arguments]",
        description="Federated learning for microcontrollers.",
        epilog="verbs:\n" + "\n".join(lines) + "\n\n`fedmote VERB --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedmote {fedmote.__version__}")
    parser.parse_args(given)
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _summary(point: EntryPoint) -> str:
    """The SUMMARY of a verb's module, read from its source; empty where it has none yet."""
    path = _source(point.module)
    if path is None:
        return "(not installed)"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "SUMMARY" for target in targets):
            value = cast(ast.Assign, node).value
            return str(value.value) if isinstance(value, ast.Constant) else ""
    return ""


def _source(module: str) -> Path | None:
    """Path of a module's source, found without importing its parents (`find_spec` of a submodule would)."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin is not None:
        return Path(spec.origin)
    for root in spec.submodule_search_locations or ():
        base = Path(root).joinpath(*rest)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _complain(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"fedmote: {' '.join(text.split())}\n")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
