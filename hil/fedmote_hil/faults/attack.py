# SPDX-License-Identifier: Apache-2.0
"""Hostile participants among native C devices, against a coordinator as it is deployed.

    lost = run_attack(directory, "clipped_mean", 0.1)       # points of accuracy

Honest devices are the SDK's own program. Hostile ones speak the same protocol from Python: they pull the model, train its head on
samples of their own as a device does, and report what the attack makes of it. The model is the small one of all rows, so a run
takes seconds; `fedmote bench attacks` has the figures on real data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.lab.attacks.attack import ATTACKS
from fedmote.lab.attacks.setting import Samples, Setting, train_head
from fedmote.package.partition import Partition, run_features
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.codec import Message
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.model import CLASSES, FEATURES, draw
from fedmote_hil.faults.site import Site

NUM_DEVICES = 20
NUM_ROUNDS = 6
_PATIENCE_S = 120.0
_HELLO_S = 0.1
# As the configuration says it to all: an honest fleet has learned the model after these rounds, and the plain mean has not.
_TRAINING: dict[str, Any] = {"epochs": 2, "batch": 8, "learning_rate": 0.1, "momentum": 0.0, "alpha": 0.0, "beta": 0.0}


class Hostile:
    """What a hostile participant reports, in place of what it learned.

    Args:
        site: whose model it pulls.
        number: of the participant; its samples are those that a device in its place would have.
        attack: one of `ATTACKS`.
    """

    def __init__(self, site: Site, number: int, attack: str) -> None:
        partition = Partition.load(site.model.partition)
        x, labels = draw(100 + number, 24)
        self._samples = Samples(run_features(partition.package, x), labels)
        self._first = partition.package.head_blob
        self._attack = attack
        self._number = number
        self.member = member(site, number, Conduct(blob=self.update, hello_s=_HELLO_S))

    def update(self, plan: Message) -> bytes:
        """The update for a plan, from the head that came with it or is inside its package."""
        is_newer = len(self.member.blobs) > 1
        head = np.frombuffer(self.member.blobs[1], "<f4") if is_newer else self._first
        weight, bias = head[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), head[CLASSES * FEATURES :]
        setting = Setting(
            epochs=plan["epochs"], batch=plan["batch"], learning_rate=plan["learning_rate_micro"] / 1e6, momentum=0.0
        )
        generator = np.random.default_rng([plan["seed"], self._number])
        learned: NDArray[np.float32] = train_head(weight, bias, self._samples, setting, generator)
        return encode_head_update(ATTACKS[self._attack](learned, generator))


def run_fleet(
    directory: Path, rule: str, num_hostile: int, attack: str = "sign-flip", num_devices: int = NUM_DEVICES, **keys: object
) -> dict[str, Any]:
    """One run; the coordinator's result as `fedmote serve --json` prints it.

    Args:
        directory: for all files; made.
        rule: value of `[strategy] aggregation`.
        num_hostile: so many of the devices are hostile, the first ones.
        attack: one of `ATTACKS`.
        num_devices: of the fleet.
        keys: further keys of `[strategy]`.

    Raises:
        VainError: the coordinator did not end in time.
        NotRunError: mosquitto is not installed.
    """
    directory.mkdir(parents=True)
    with Site(directory, num_devices) as site, Background() as background:
        fleet = site.fleet(range(num_hostile, num_devices))
        fleet.start()
        for number in range(num_hostile):
            background.begin(Hostile(site, number, attack).member.run())
        strategy = {**_TRAINING, "aggregation": rule, **keys}
        return site.serve(site.configure("attack", NUM_ROUNDS, strategy=strategy)).finish(_PATIENCE_S)


def run_attack(
    directory: Path, rule: str, share: float, attack: str = "sign-flip", num_devices: int = NUM_DEVICES, **keys: object
) -> float:
    """Accuracy points that a fleet loses, against the same fleet, all honest, under the plain mean.

    Args:
        directory: for all files; made.
        rule: value of `[strategy] aggregation`.
        share: of the devices that are hostile, 0 to 1.
        attack: one of `ATTACKS`.
        num_devices: of the fleet.
        keys: further keys of `[strategy]`.

    Returns:
        Points, 0 to 100; negative where the rule is better than the plain mean of honest updates.
    """
    clean = run_fleet(directory / "clean", "mean", 0, attack, num_devices)["accuracy"]
    kept = run_fleet(directory / "attacked", rule, round(share * num_devices), attack, num_devices, **keys)["accuracy"]
    return 100.0 * (float(clean) - float(kept))
