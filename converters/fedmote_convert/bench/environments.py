# SPDX-License-Identifier: Apache-2.0
"""Virtual environments of others: pinned, below the cache, made when asked for; nothing of theirs enters our own.

An environment sees our packages by links in a directory of its own, not through the folder that holds ours: what else lies
there would be found before what was installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fedmote
from fedmote.errors import ConversionError, RigError
from fedmote.places import cache_directory

Progress = Callable[[str], None]

INSTALL = "`fedmote bench convert --install-peers` makes it"
_COMPLETE = "complete.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: its folder below the cache.
        requirements: pinned, as pip reads them.
        megabytes: what it takes on the disk, about.
    """

    name: str
    requirements: tuple[str, ...]
    megabytes: int

    @property
    def python(self) -> Path:
        """Its interpreter, there or not."""
        return cache_directory(self.name) / "bin" / "python"

    @property
    def is_installed(self) -> bool:
        """Whether an installation of these very requirements has come to its end."""
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(self._marker.read_text()) == list(self.requirements))
        return False

    @property
    def absence(self) -> str:
        """Why it cannot be used, for the list of what was skipped."""
        return f"environment {self.name} is not installed ({', '.join(self.requirements)}; {self.megabytes} MB); {INSTALL}"

    @property
    def _marker(self) -> Path:
        return cache_directory(self.name) / _COMPLETE

    def install(self, progress: Progress) -> None:
        """Make it, unless it is there.

        Raises:
            RigError: pip failed; its last line is told.
        """
        if self.is_installed:
            return
        progress(f"installing {', '.join(self.requirements)} into {cache_directory(self.name)}, about {self.megabytes} MB")
        venv.create(cache_directory(self.name), symlinks=True, with_pip=True)
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.requirements]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RigError(f"environment {self.name}: pip failed: {_last_line(done.stderr)}")
        self._marker.write_text(json.dumps(self.requirements))


def litert_torch() -> Environment:
    """The other way from torch to int8 `.tflite`."""
    return Environment("litert-torch", ("torch==2.13.0", "litert-torch==0.10.0", "ai-edge-quantizer==0.10.0"), 2200)


def numpy_1() -> Environment:
    """The last tflite-runtime, which needs NumPy 1; and what `fedmote.package` needs, in the versions that are installed here."""
    ours = tuple(f"{name}=={importlib.metadata.version(name)}" for name in ("cbor2", "flatbuffers", "safetensors"))
    return Environment("numpy-1", ("numpy==1.26.4", "tflite-runtime==2.14.0", *ours), 150)


@contextlib.contextmanager
def linked_packages(*packages: Path) -> Iterator[Path]:
    """A directory through which a child process finds these Python packages, and nothing else of ours."""
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as directory:
        for package in packages:
            (Path(directory) / package.name).symlink_to(package.resolve(), target_is_directory=True)
        yield Path(directory)


def our_packages() -> tuple[Path, ...]:
    """Folders of `fedmote` and `fedmote_convert`."""
    return Path(fedmote.__file__).parent, Path(__file__).parents[1]


def run_python(python: Path, program: Path, arguments: Iterable[object], packages: Sequence[Path]) -> str:
    """Run a program of ours with an interpreter, on one thread.

    Args:
        python: the interpreter.
        program: path of the program.
        arguments: of the program; what they are is written as text.
        packages: folders of packages that it may import beside those of the interpreter's own environment.

    Returns:
        Its standard output.

    Raises:
        ConversionError: it failed; the last line of what it said is told.
    """
    with linked_packages(*packages) as links:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | threads | {"PYTHONPATH": str(links), "PYTHONNOUSERSITE": "1"}
        command = [str(part) for part in (python, "-P", program, *arguments)]  # -P: not what lies beside the program
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ConversionError(f"{program.name}: {_last_line(done.stderr)}")
    return done.stdout


def added_bytes(python: Path, distributions: Sequence[str], packages: Sequence[Path] = ()) -> int:
    """What distributions add to an environment that has torch and NumPy: bytes of files, of their requirements too.

    Args:
        python: the interpreter of an environment that holds them.
        distributions: names.
        packages: folders that belong to them although they are not in their lists of files, as in an editable installation.
    """
    program = Path(__file__).with_name("added_bytes_worker.py")
    said = run_python(python, program, ["torch,numpy", ",".join(distributions), *packages], ())
    return int(json.loads(said)["bytes"])


def current_python() -> Path:
    """The interpreter of our own environment."""
    return Path(sys.executable)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word"
