# SPDX-License-Identifier: Apache-2.0
"""One conversion of one model by one stack: same weights, same calibration samples, timed in a process of its own."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmote.errors import FedmoteError
from fedmote.lab.zoo.networks import without_head
from fedmote.lab.zoo.zoo import Model
from fedmote.package.boards import sdk_root
from fedmote_convert.bench.environments import added_bytes, current_python, litert_torch, our_packages, run_python

FEDMOTE = "fedmote"
AEQ = "litert-torch + ai-edge-quantizer"
PT2E = "litert-torch + PT2E"
_QUANTIZERS = {AEQ: "aeq", PT2E: "pt2e"}
PEERS = tuple(_QUANTIZERS)


@dataclass(frozen=True)
class Outcome:
    """What a stack made of a model.

    Attributes:
        stack: its name.
        seconds: processor time, user and system, of one conversion from module and samples to the files; median.
        checked_seconds: with the comparison with the float module, where the stack makes one.
        tflite: the int8 encoder.
        is_arranged: whether it reads samples in the layout of our package; else in torch's order of axes.
        package: the `.fmp`, of ours alone.
    """

    stack: str
    seconds: float
    tflite: bytes
    is_arranged: bool
    checked_seconds: float | None = None
    package: bytes | None = None


def run_ours(model: Model, repeats: int, directory: Path) -> Outcome:
    """Convert with fedmote_convert."""
    _write_job(model, directory)
    tflite, package = directory / "fedmote.tflite", directory / "fedmote.fmp"
    program = Path(__file__).with_name("fedmote_worker.py")
    files = [directory / "module.pt", directory / "calibration.npy"]
    arguments = [model.entry.name, *files, str(repeats), tflite, package]
    said = _last_object(run_python(current_python(), program, arguments, our_packages()))
    seconds, checked = (statistics.median(said[key]) for key in ("seconds", "checked_seconds"))
    return Outcome(FEDMOTE, seconds, tflite.read_bytes(), True, checked, package.read_bytes())


def run_peer(stack: str, model: Model, repeats: int, directory: Path) -> Outcome:
    """Convert with litert-torch and one of its quantizers.

    Raises:
        ConversionError: it failed.
    """
    _write_job(model, directory)
    tflite = directory / "peer.tflite"
    program = Path(__file__).with_name("litert_worker.py")
    files = [directory / "encoder.pt", directory / "calibration.npy"]
    arguments = [_QUANTIZERS[stack], *files, str(repeats), tflite]
    said = _last_object(run_python(litert_torch().python, program, arguments, our_packages()))
    return Outcome(stack, statistics.median(said["seconds"]), tflite.read_bytes(), False)


def install_bytes(stack: str) -> int:
    """What a stack adds to an environment that has torch and NumPy."""
    if stack == FEDMOTE:
        return added_bytes(current_python(), ("fedmote",), (*our_packages(), sdk_root()))
    quantizer = ("ai-edge-quantizer",) if stack == AEQ else ()
    return added_bytes(litert_torch().python, ("litert-torch", *quantizer))


def _write_job(model: Model, directory: Path) -> None:
    torch.save(model.module, directory / "module.pt")
    torch.save(without_head(model.module), directory / "encoder.pt")
    np.save(directory / "calibration.npy", model.data.x_calibration)


def _last_object(said: str) -> dict[str, list[float]]:
    try:
        found: dict[str, list[float]] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise FedmoteError(f"a converting process ended without its figures: {said[-200:]!r}") from error
    return found
