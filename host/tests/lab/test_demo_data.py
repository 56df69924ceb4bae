# SPDX-License-Identifier: Apache-2.0
"""Data of the demonstration: sets that share nothing, and files that are refused with a reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.errors import ConfigError
from fedmote.lab.demo.data import CELLS, DataSet, load, load_digits, load_npz, majorities, split
from fedmote.lab.demo.settings import SplitSettings

SMALL = SplitSettings(majority_samples=6, minority_samples=2, pretraining_samples=5, test_samples=4)


def made_up(num_classes, num_owners, per_pair=12):
    y = np.tile(np.repeat(np.arange(num_classes), per_pair), num_owners or 10)
    owner = np.repeat(np.arange(num_owners), num_classes * per_pair) if num_owners else None
    return DataSet("made-up", np.zeros((len(y), 4), np.float32), y, owner, "subject" if num_owners else "")


def check_disjoint(parts):
    everything = np.concatenate(list(parts.values()))
    assert len(np.unique(everything)) == len(everything)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(3, 12), num_owners=st.sampled_from([0, 10, 25]))
def test_no_sample_is_in_two_sets(seed, num_classes, num_owners):
    data = made_up(num_classes, num_owners)
    found = split(data, SMALL, seed, max_samples=50)
    check_disjoint(found.sets())
    assert all(0 < len(found.cells[name]) <= 50 for name in CELLS)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(3, 8), num_owners=st.integers(10, 30))
def test_no_owner_is_in_two_sets(seed, num_classes, num_owners):
    data = made_up(num_classes, num_owners)
    found = split(data, SMALL, seed, max_samples=50)
    people = {name: set(data.owner[indices].tolist()) for name, indices in found.sets().items()}
    for name, owners in people.items():
        assert owners <= set(found.owners[name])
        assert all(not owners & others for other, others in people.items() if other != name)


def test_the_digits_are_pretrained_on_five_classes_and_held_and_tested_on_ten():
    data = load_digits()
    for seed in range(5):
        found = split(data, SplitSettings(), seed, max_samples=256)
        check_disjoint(found.sets())
        assert set(data.y[found.pretraining]) == {0, 1, 2, 3, 4}
        assert set(data.y[found.test]) == set(range(10))
        assert set(data.y[np.concatenate(list(found.cells.values()))]) == set(range(10))
        assert all(len(indices) <= 256 for indices in found.cells.values())


def test_cells_are_skewed_towards_their_majority_classes():
    data = load_digits()
    found = split(data, SplitSettings(), 0, max_samples=256)
    for name, indices in found.cells.items():
        in_majority = np.isin(data.y[indices], found.majority[name]).mean()
        assert in_majority > 0.6


def test_every_class_is_the_majority_of_exactly_one_cell():
    for num_classes in range(3, 13):
        shares = majorities(num_classes, range(num_classes // 2))
        assert sorted(label for labels in shares.values() for label in labels) == list(range(num_classes))
        assert all(shares.values())


def test_equal_seeds_give_equal_splits_and_others_do_not():
    data = load_digits()
    one, same, other = (split(data, SplitSettings(), seed, 256) for seed in (1, 1, 2))
    assert all(np.array_equal(one.sets()[name], same.sets()[name]) for name in one.sets())
    assert not np.array_equal(one.test, other.test)


@pytest.mark.parametrize("missing", ["x", "y", "subject"])
def test_a_file_without_a_key_is_refused_by_its_name(tmp_path, missing):
    content = {"x": np.zeros((5, 3)), "y": np.zeros(5, int), "subject": np.zeros(5, int)}
    del content[missing]
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(ConfigError, match=r"data\.npz.*" + missing):
        load(str(tmp_path / "data.npz"))


def test_a_file_that_is_no_npz_or_not_there_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(ConfigError, match=name):
            load_npz(tmp_path / name)


def test_labels_that_are_no_classes_are_refused(tmp_path):
    for y in (np.full(5, 0.5), np.full(5, -1), np.full(5, 256)):
        np.savez(tmp_path / "data.npz", x=np.zeros((5, 3)), y=y, subject=np.zeros(5, int))
        with pytest.raises(ConfigError, match="y is"):
            load_npz(tmp_path / "data.npz")


def test_axes_are_put_in_the_order_of_torch(tmp_path):
    for shape, expected in (((128, 9), (9, 128)), ((28, 28), (1, 28, 28)), ((32, 32, 3), (3, 32, 32)), ((64,), (64,))):
        np.savez(tmp_path / "data.npz", x=np.zeros((2, *shape), np.float16), y=[0, 1], writer=[1, 2])
        assert load_npz(tmp_path / "data.npz").x.shape[1:] == expected


def test_bytes_are_scaled_and_floats_are_not(tmp_path):
    for x, highest in ((np.full((2, 28, 28), 255, np.uint8), 1.0), (np.full((2, 128, 9), 3.0), 3.0)):
        np.savez(tmp_path / "data.npz", x=x, y=[0, 1], record=[1, 2])
        assert load_npz(tmp_path / "data.npz").x.max() == highest


def test_too_few_owners_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        split(made_up(4, 4), SMALL, 0, 50)
