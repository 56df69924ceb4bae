# SPDX-License-Identifier: Apache-2.0
"""What hostile participants send. They follow the protocol and know nothing of the others' updates.

An attacker that knows the rule and the others' updates does better than any of these; see SECURITY.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedmote.lab.attacks.setting import Samples

Delta = NDArray[np.float32]

FLIP_FACTOR = 5.0
_BOOST_FACTOR = 1000.0
_NOISE_FACTOR = 5.0


def flipped(delta: Delta, generator: np.random.Generator) -> Delta:
    """The opposite of what it learned, at five times the norm."""
    return (-FLIP_FACTOR * delta).astype(np.float32)


def boosted(delta: Delta, generator: np.random.Generator) -> Delta:
    """The opposite of what it learned, a thousand times."""
    return (-_BOOST_FACTOR * delta).astype(np.float32)


def noise(delta: Delta, generator: np.random.Generator) -> Delta:
    """A random direction at five times the norm."""
    drawn = generator.normal(size=delta.shape)
    return np.asarray(drawn * (_NOISE_FACTOR * np.linalg.norm(delta) / np.linalg.norm(drawn)), np.float32)


def honest(delta: Delta, generator: np.random.Generator) -> Delta:
    """What it learned."""
    return delta


# What is sent in place of an update, by the attack's name; "label-flip" lies in its data instead.
ATTACKS: Mapping[str, Callable[[Delta, np.random.Generator], Delta]] = {
    "sign-flip": flipped,
    "noise": noise,
    "label-flip": honest,
    "x1000": boosted,
}


def mislabelled(samples: Samples, num_classes: int) -> Samples:
    """The samples under the labels c - 1 - y."""
    return Samples(samples.x, num_classes - 1 - samples.y)
