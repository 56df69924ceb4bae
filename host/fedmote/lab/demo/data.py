# SPDX-License-Identifier: Apache-2.0
"""Data of the demonstration: reading, and cutting into sets that share nothing.

Without owners (digits), samples are dealt by class. With owners (people, writers, records), owners are dealt first, so that
nobody whose samples were trained on is in the test, and no owner is in two cells; classes are skewed inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.arrays import load_npz as load_arrays
from fedmote.errors import ConfigError
from fedmote.lab.demo.settings import SplitSettings

DIGITS = "digits"
OWNER_KEYS = ("subject", "writer", "speaker", "record")
CELLS = ("a", "b", "c")
# Images with at most this many channels are recognised as (height, width, channels).
_MAX_IMAGE_CHANNELS = 4
_MAX_CLASSES = 256  # a board stores labels as bytes


@dataclass(frozen=True)
class DataSet:
    """Labelled samples.

    Attributes:
        name: for people.
        x: float32 (N, ...), torch layout: (C, H, W), (C, W) or (F,) per sample.
        y: int64 (N,), from 0 to num_classes - 1.
        owner: int64 (N,), whose each sample is; None where the data do not say.
        owner_key: the word for an owner.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    owner: NDArray[np.int64] | None = None
    owner_key: str = ""

    @property
    def num_classes(self) -> int:
        """Classes that occur, the highest label plus one."""
        return int(self.y.max()) + 1

    def part(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Samples and labels at indices."""
        return self.x[np.asarray(indices, np.int64)], self.y[np.asarray(indices, np.int64)]


@dataclass(frozen=True)
class Split:
    """Indices into a data set; no index is in two sets.

    Attributes:
        pretraining: what the first model is trained and calibrated on.
        cells: a device's samples, by name of the cell.
        test: what accuracy is measured on.
        pretrained_classes: classes of the pre-training set.
        majority: classes of which a cell holds much, by name of the cell.
        owners: owners of each set ("pretraining", names of cells, "test"); empty where there are none.
    """

    pretraining: NDArray[np.int64]
    cells: Mapping[str, NDArray[np.int64]]
    test: NDArray[np.int64]
    pretrained_classes: tuple[int, ...]
    majority: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def sets(self) -> dict[str, NDArray[np.int64]]:
        """All sets by name."""
        return {"pretraining": self.pretraining, **self.cells, "test": self.test}


def load(name: str) -> DataSet:
    """The data set called "digits", or that of an `.npz` file.

    Raises:
        ConfigError: no such file, or not of the form x (N, ...), y (N,) and an owner key.
    """
    return load_digits() if name == DIGITS else load_npz(Path(name))


def load_digits() -> DataSet:
    """Handwritten digits of 8 x 8 pixels, 1797 of them, from scikit-learn's own wheel (UCI ML hand-written digits, test part)."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn: pip install 'fedmote[demo]', or name an .npz with --data"
        ) from error
    bunch = datasets.load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[:, None]  # 16 grey levels to [0, 1]
    return DataSet(DIGITS, x, bunch.target.astype(np.int64))


def load_npz(path: Path) -> DataSet:
    """Samples, labels and owners of a file; axes are put in torch's order.

    (H, W) becomes (1, H, W), (H, W, C) with at most four channels becomes (C, H, W). Of two axes the longer one is time where
    the other is at most 16 long, so that (128, 9) becomes (9, 128). Whole numbers are taken as bytes and scaled to [0, 1].
    """
    content = load_arrays(path, optional=OWNER_KEYS)
    x, y = content["x"], content["y"]
    owner_key = next((key for key in OWNER_KEYS if key in content), None)
    if owner_key is None:
        raise ConfigError(f"{path}: no key says whose a sample is; one of {', '.join(OWNER_KEYS)} is expected")
    owner = content[owner_key]
    if x.ndim < 2 or not len(x) or y.shape != (len(x),) or owner.shape != (len(x),):
        raise ConfigError(f"{path}: x {x.shape}, y {y.shape} and {owner_key} {owner.shape} do not belong together")
    if not np.issubdtype(y.dtype, np.integer) or int(y.min()) < 0 or int(y.max()) >= _MAX_CLASSES:
        raise ConfigError(f"{path}: y is {y.dtype}, from {y.min()} to {y.max()}; class numbers from 0 to {_MAX_CLASSES - 1} fit")
    scale = 255.0 if np.issubdtype(x.dtype, np.integer) else 1.0
    samples = np.ascontiguousarray(_torch_axes(x), np.float32) / np.float32(scale)
    _, owner_number = np.unique(owner, return_inverse=True)
    owners = owner.astype(np.int64) if np.issubdtype(owner.dtype, np.integer) else owner_number.astype(np.int64)
    return DataSet(path.stem, samples, y.astype(np.int64), owners, owner_key)


def _torch_axes(x: NDArray[np.generic]) -> NDArray[np.generic]:
    if x.ndim == 4 and x.shape[3] <= _MAX_IMAGE_CHANNELS < x.shape[1]:
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 3:
        height, width = x.shape[1:]
        if min(height, width) > 16 or height == width:
            return x[:, None]
        return x.transpose(0, 2, 1) if height > width else x
    return x


def split(data: DataSet, settings: SplitSettings, seed: int, max_samples: int) -> Split:
    """Cut a data set into pre-training, cells and test.

    Args:
        data: what is there.
        settings: how much of what.
        seed: of the draw.
        max_samples: that a device takes.

    Raises:
        ConfigError: the data are too few, in classes, owners or samples.
    """
    num_classes = data.num_classes
    if num_classes < len(CELLS):
        raise ConfigError(f"{data.name}: {num_classes} classes; the demonstration needs at least {len(CELLS)}, one for each cell")
    generator = np.random.default_rng([seed, num_classes, len(data.y)])
    pretrained = tuple(range(max(1, round(settings.pretrained_share * num_classes))))
    majority = majorities(num_classes, pretrained)
    pools, owners = _pools(data, settings, generator)
    dealer = _Dealer(data, pools, generator)
    test = dealer.deal("test", dict.fromkeys(range(num_classes), settings.test_samples))
    pretraining = dealer.deal("pretraining", dict.fromkeys(pretrained, settings.pretraining_samples))
    cells = {name: dealer.deal(name, _counts(num_classes, majority[name], settings))[:max_samples] for name in CELLS}
    return Split(pretraining, cells, test, pretrained, majority, owners)


def majorities(num_classes: int, pretrained: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Majority classes of each cell: new classes and pre-trained ones dealt in turn, so that each cell has some of both."""
    new = [c for c in range(num_classes) if c not in pretrained]
    shares: dict[str, list[int]] = {name: [] for name in CELLS}
    for position, label in enumerate([*new, *pretrained]):
        shares[CELLS[position * len(CELLS) // num_classes if num_classes <= len(CELLS) else position % len(CELLS)]].append(label)
    return {name: tuple(sorted(labels)) for name, labels in shares.items()}


def _counts(num_classes: int, majority: Sequence[int], settings: SplitSettings) -> dict[int, int]:
    return {c: settings.majority_samples if c in majority else settings.minority_samples for c in range(num_classes)}


def _pools(
    data: DataSet, settings: SplitSettings, generator: np.random.Generator
) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[int, ...]]]:
    """Indices that each set may draw from, and the owners behind them."""
    names = ("test", "pretraining", *CELLS)
    everything = np.arange(len(data.y))
    if data.owner is None:
        return dict.fromkeys(names, everything), {}
    people = generator.permutation(np.unique(data.owner))
    num_test = max(1, round(settings.test_owners_share * len(people)))
    num_pretraining = max(1, round(settings.pretraining_owners_share * len(people)))
    rest = people[num_test + num_pretraining :]
    if len(rest) < len(CELLS):
        raise ConfigError(f"{data.name}: {len(people)} owners ({data.owner_key}) are too few for {len(CELLS)} cells and a test")
    groups = [people[:num_test], people[num_test : num_test + num_pretraining], *np.array_split(rest, len(CELLS))]
    owners = {name: tuple(sorted(int(one) for one in group)) for name, group in zip(names, groups, strict=True)}
    return {name: everything[np.isin(data.owner, owners[name])] for name in names}, owners


class _Dealer:
    """Hands out indices, none twice."""

    def __init__(self, data: DataSet, pools: Mapping[str, NDArray[np.int64]], generator: np.random.Generator) -> None:
        self._data = data
        self._pools = pools
        self._generator = generator
        self._order = generator.permutation(len(data.y))
        self._is_free = np.ones(len(data.y), np.bool_)

    def deal(self, name: str, counts: Mapping[int, int]) -> NDArray[np.int64]:
        """So many samples of each class for a set, in random order; fewer where the owners have fewer, but some.

        Raises:
            ConfigError: nothing is left of a class that is asked for.
        """
        in_pool = np.zeros(len(self._order), np.bool_)
        in_pool[self._pools[name]] = True
        chosen: list[NDArray[np.int64]] = []
        for label, count in counts.items():
            usable = self._order[(self._is_free & in_pool & (self._data.y == label))[self._order]][:count]
            if not len(usable) and count:
                raise ConfigError(f"{self._data.name}: no sample of class {label} is left for {name}")
            self._is_free[usable] = False
            chosen.append(usable)
        return self._generator.permutation(np.concatenate(chosen))
