# SPDX-License-Identifier: Apache-2.0
"""The demonstration from beginning to end: for each seed prepare, play the strategy, play its baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fedmote.lab.demo.data import CELLS, DataSet, Split, load, split
from fedmote.lab.demo.experiment import Scene, Talk, play
from fedmote.lab.demo.fleet import Fleet
from fedmote.lab.demo.prepare import Materials, prepare, standardised
from fedmote.lab.demo.report import Footprint, SeedResult, curve_of
from fedmote.lab.demo.settings import DemoSettings, settings_for
from fedmote.lab.demo.training import Batch, accuracy, load_state, pooled_accuracies
from fedmote.package.boards import Board
from fedmote.package.partition import Partition
from fedmote.tensors import load_safetensors

# Baselines and further seeds run on it: the same C sources as a process of this machine.
NATIVE = "posix"
_BUILD_TIMEOUT_S = 300.0

Form = Literal["alternating", "simultaneous"]


@dataclass(frozen=True)
class Told:
    """What there is to report.

    Attributes:
        data: words about data and split.
        scene: of the first seed.
        seeds: results.
        footprint: of boards and packages.
    """

    data: Mapping[str, Any]
    scene: Scene
    seeds: Sequence[SeedResult]
    footprint: Footprint


def tell(
    name: str,
    boards: Mapping[str, str],
    has_broker: bool,
    form: Form,
    seeds: Sequence[int],
    rounds: int | None,
    directory: Path,
    talk: Talk,
) -> Told:
    """Do everything.

    Args:
        name: "digits" or the path of an `.npz`.
        boards: of the devices, by cell.
        has_broker: MQTT, or direct tcp links.
        form: of Centaur.
        seeds: the first one runs on `boards`, the others natively.
        rounds: merges; None for the default.
        directory: of all files.
        talk: takes lines about progress.

    Raises:
        FedmoteError: data, a tool or a command failed.
    """
    torch.set_num_threads(1)  # sums depend on the number of threads, and other processes need the cores
    data = load(name)
    settings = settings_for(data.x.ndim == 3, form)
    settings = replace(settings, rounds=settings.rounds if rounds is None else rounds)
    scene = Scene(boards, has_broker)
    results, facts, footprint = [], {}, None
    for seed in seeds:
        home = directory if len(seeds) == 1 else directory / f"seed-{seed}"
        chosen = scene if seed == seeds[0] else native(scene)
        one = _Seed(data, replace(settings, seed=seed), chosen, home, talk)
        results.append(one.play())
        if footprint is None:
            footprint, facts = one.footprint(), one.facts()
    assert footprint is not None  # there is at least one seed
    return Told(facts, scene, results, footprint)


def native(scene: Scene) -> Scene:
    """The same cells as processes of this machine on direct links.

    The same C sources: int8 arithmetic is the same bit for bit, float heads differ in the last places between processors.
    """
    return replace(scene, boards=dict.fromkeys(scene.boards, NATIVE), has_broker=False)


class _Seed:
    """One seed of the demonstration."""

    def __init__(self, data: DataSet, settings: DemoSettings, scene: Scene, home: Path, talk: Talk) -> None:
        self.settings = settings
        self.scene = scene
        self.home = home
        self._talk = talk
        limit = min(Board.load(board).max_samples for board in scene.boards.values())
        self.split: Split = split(data, settings.split, settings.seed, limit)
        self.data = standardised(data, self.split)

    def play(self) -> SeedResult:
        """Prepare, play the strategy, then the baselines."""
        self._talk(f"seed {self.settings.seed}: {self.data.name}, {_sizes(self.split)}")
        self.materials = self._prepare()
        words = ", ".join(f"{cell}: {self.scene.boards[cell]} on {self.scene.link(cell)}" for cell in CELLS)
        self._talk(f"devices may send selected samples to their own partner (off by default, on here); {words}")
        run = play(self.home / "run", self.materials, self.settings, self.scene, self._talk)
        curves = {
            "devices_only": self._baseline("partners"),
            "partners_only": self._baseline("devices"),
            "pooled": self._pooled(),
        }
        return SeedResult(self.settings.seed, run, curves)

    def footprint(self) -> Footprint:
        """Flash bytes of the images, and the packages."""
        sizes: dict[str, int | None] = {}
        with Fleet(self.home / "work") as fleet:
            for board in dict.fromkeys(self.scene.boards.values()):
                sizes[board] = None
                if Board.load(board).emulator is not None:
                    image = self.home / "work" / f"{board}.bin"
                    answer = fleet.run(f"build-{board}", _BUILD_TIMEOUT_S, "build", "--board", board, "-o", image, "--json")
                    sizes[board] = int(json.loads(answer)["bytes"])
        return Footprint(sizes, Partition.load(self.materials.partition))

    def facts(self) -> dict[str, Any]:
        """Words about data and split."""
        parts = self.split.sets()
        found: dict[str, Any] = {
            "name": self.data.name,
            "model": self.materials.model.spec,
            "classes": self.data.num_classes,
            "pretrained_classes": list(self.split.pretrained_classes),
            "samples": {_set_name(name): len(indices) for name, indices in parts.items()},
            "class_counts": {
                _set_name(name): np.bincount(self.data.y[indices], minlength=self.data.num_classes).tolist()
                for name, indices in parts.items()
            },
        }
        if self.split.owners:
            found["owner_key"] = self.data.owner_key
            found["owners"] = {_set_name(name): list(owners) for name, owners in self.split.owners.items()}
        return found

    def _prepare(self) -> Materials:
        work = self.home / "work"
        boards = [*self.scene.boards.values(), NATIVE]  # the baselines' board
        with Fleet(work, [work]) as fleet:
            return prepare(self.data, self.split, self.settings, boards, work, fleet.run)

    def _baseline(self, ignored: Literal["devices", "partners"]) -> list[float]:
        """Accuracies of the same run, natively, with one tier left out of the merge."""
        self._talk(f"baseline without {ignored}: the same C sources as native processes, the same coordinator code")
        scene = replace(native(self.scene), ignore=ignored)
        return curve_of(play(self.home / f"without-{ignored}", self.materials, self.settings, scene, _silent))

    def _pooled(self) -> list[float]:
        model = self.materials.model.build()
        load_state(model, load_safetensors(self.materials.weights))
        everything: Batch = self.data.part(np.concatenate([self.split.cells[name] for name in CELLS]))
        test = self.data.part(self.split.test)
        self._talk(
            f"baseline pooled: all {len(everything[1])} samples in one place; first checkpoint {accuracy(model, test):.4f}"
        )
        settings = self.settings
        return pooled_accuracies(model, everything, test, settings.federation, settings.rounds, settings.seed)


def _silent(text: str) -> None:
    """Baselines are many lines that nobody waits for."""


def _sizes(parts: Split) -> str:
    return ", ".join(f"{_set_name(name)} {len(indices)}" for name, indices in parts.sets().items())


def _set_name(name: str) -> str:
    return {"pretraining": "pre-training", "test": "test"}.get(name, f"cell {name}")
