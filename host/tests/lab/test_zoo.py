# SPDX-License-Identifier: Apache-2.0
"""The zoo: its data share nobody between the sides, its weights are trained once, its metrics are those of the books."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmote.errors import ConfigError
from fedmote.lab.zoo import data as datasets
from fedmote.lab.zoo.networks import head_of, without_head
from fedmote.lab.zoo.zoo import AUC, ZOO, Entry, Training, area_under_curve, load_model, outputs_of
from fedmote.places import shared_directory

DIGITS = replace(ZOO[0], training=Training(epochs=1))


def needs(path):
    where = shared_directory() / "data" / path
    return pytest.mark.skipif(not where.is_file(), reason=f"there is no {where}")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedmote" / "zoo"


def load(entry, **options):
    pytest.importorskip("sklearn")
    said = []
    model = load_model(entry, said.append, **options)
    return model, said


def test_a_model_is_trained_once_and_then_read_from_the_cache(cache):
    trained, said = load(DIGITS)
    again, nothing = load(DIGITS)

    assert "training digits_cnn on 1200 samples, 1 epochs" in said
    assert nothing == []
    assert [path.name for path in cache.iterdir()] == [trained.weights.name]
    for name, values in trained.module.state_dict().items():
        if values.is_floating_point():
            assert torch.equal(values, again.module.state_dict()[name]), name


def test_other_settings_other_weights_and_asking_for_it_trains_anew(cache):
    first, _ = load(DIGITS)
    other, said = load(replace(DIGITS, training=Training(epochs=1, seed=1)))
    content = first.weights.read_bytes()
    first.weights.write_bytes(other.weights.read_bytes())
    again, more = load(DIGITS, is_anew=True)

    assert other.weights != first.weights
    assert said and more
    assert again.weights.read_bytes() == content  # one seed, one result


def test_training_leaves_the_callers_random_state_and_threads(cache):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()

    load(DIGITS)

    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.name != "digits_cnn"], ids=lambda entry: entry.name)
def test_absent_data_are_named(monkeypatch, tmp_path, entry):
    monkeypatch.setenv("FEDMOTE_SHARED", str(tmp_path))

    with pytest.raises(datasets.AbsentError, match=r"there is no .*\.npz \(FEDMOTE_SHARED\)") as caught:
        entry.load()
    assert isinstance(caught.value, ConfigError)


@needs("har_phone_30subjects/windows.npz")
def test_activities_are_those_of_people_on_one_side_only():
    with np.load(shared_directory() / "data/har_phone_30subjects/windows.npz") as file:
        is_test = file["is_test_subject"] == 1
        x = file["x"].astype(np.float32).transpose(0, 2, 1)
    samples = datasets.activities()

    everything = datasets._standardised(x, np.flatnonzero(~is_test), (0, 2))

    assert len(samples.x_train) == (~is_test).sum()
    assert {row.tobytes() for row in samples.x_train} == {row.tobytes() for row in everything[~is_test]}
    assert {row.tobytes() for row in samples.x_test} <= {row.tobytes() for row in everything[is_test]}
    np.testing.assert_allclose(samples.x_train.mean(axis=(0, 2), dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(samples.x_train.std(axis=(0, 2), dtype=np.float64), 1, atol=1e-4)


@needs("vibration_cwru_drive_end/windows.npz")
def test_an_autoencoder_is_trained_on_normal_windows_and_tested_on_both_kinds_at_the_same_load():
    samples = datasets.vibration()

    assert set(samples.y_train) == {0}
    assert set(samples.y_test) == {0, 1}
    assert samples.x_train.shape[1:] == samples.x_test.shape[1:] == (640,)
    assert len(samples.x_calibration) == datasets.NUM_CALIBRATION
    seen = {row.tobytes() for row in np.concatenate([samples.x_train, samples.x_calibration])}
    assert not seen & {row.tobytes() for row in samples.x_test}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_an_encoder_is_the_module_without_its_head(entry):
    shapes = {"digits_cnn": (1, 8, 8), "har_cnn": (9, 128), "ds_cnn": (1, 49, 10), "autoencoder": (640,)}
    shape = shapes.get(entry.name, (3, 32, 32))
    module = entry.build()
    x = np.random.default_rng(5).standard_normal((3, *shape)).astype(np.float32)

    features = outputs_of(without_head(module), x)

    with torch.no_grad():
        np.testing.assert_allclose(head_of(module)(torch.from_numpy(features)).numpy(), outputs_of(module, x), atol=1e-5)


def test_the_area_under_the_curve_counts_pairs_and_halves_of_ties():
    scores, labels = np.array([0.1, 0.4, 0.4, 0.9], np.float32), np.array([0, 0, 1, 1])

    assert area_under_curve(scores, labels) == (2 + 1 + 0.5) / 4
    assert area_under_curve(-scores, labels) == 0.5 / 4


def test_an_autoencoder_scores_by_its_error_and_agrees_by_one_threshold():
    entry = Entry("a", lambda: None, lambda: None, Training(1), AUC)
    x = np.zeros((4, 2), np.float32)
    outputs = np.array([[0, 0.1], [0, 0.2], [0, 3], [0, 4]], np.float32)

    assert entry.score(outputs, x, np.array([0, 0, 1, 1])) == 1.0
    assert entry.agreement(outputs, outputs, x) == 1.0
    assert entry.agreement(outputs, outputs[[3, 1, 2, 0]], x) == 0.5
