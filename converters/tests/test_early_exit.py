# SPDX-License-Identifier: Apache-2.0
"""New heads: softmax regression judged by scikit-learn, and samples that are held out."""

import numpy as np
import pytest

from fedmote.errors import ConversionError
from fedmote_convert.early_exit import PENALTY, Owners, split_labels, train_head

SEED = 8


def blobs(count, features, classes, spread=1.0):
    generator = np.random.default_rng(SEED)
    y = generator.integers(0, classes, count)
    centres = generator.normal(size=(classes, features))
    x = centres[y] + spread * generator.normal(size=(count, features))
    return (x * generator.uniform(0.1, 10, features) + 3).astype(np.float32), y


@pytest.mark.parametrize("count, features", [(300, 20), (60, 400)])
def test_a_new_head_is_the_penalised_minimum_that_scikit_learn_finds(count, features):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(count, features, 4)
    weights, bias = train_head(x, y, 4)

    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    model = linear_model.LogisticRegression(C=1 / (count * PENALTY), max_iter=5000, tol=1e-8).fit(scaled, y)
    logits = model.decision_function(scaled)
    assert np.abs(weights * x.std(axis=0) - model.coef_).max() < 0.01 * np.abs(model.coef_).max()
    assert np.abs((x @ weights.T + bias) - logits).max() < 0.01 * np.abs(logits).max()


def test_a_class_that_no_sample_has_and_a_feature_that_never_moves_do_no_harm():
    x, y = blobs(80, 6, 3)
    x[:, 2] = 5
    weights, bias = train_head(x, y, 5)

    assert weights.shape == (5, 6)
    assert np.isfinite(weights).all() and np.isfinite(bias).all()
    assert np.abs(weights[:, 2]).max() < 1e-12
    assert set((x @ weights.T + bias).argmax(axis=1)) <= {0, 1, 2}


def test_features_that_never_move_leave_the_most_frequent_class():
    weights, bias = train_head(np.full((10, 4), 2, np.float32), np.array([1] * 7 + [0] * 3), 3)

    assert np.all(weights == 0)
    assert bias.argmax() == 1


def test_a_quarter_of_every_class_is_held_out():
    y = np.repeat(np.arange(4), [40, 20, 8, 1]).astype(np.int64)
    labels = split_labels(y, 4)

    assert np.bincount(y[labels.held_out], minlength=4).tolist() == [10, 5, 2, 0]
    assert sorted([*labels.training, *labels.held_out]) == list(range(69))
    assert np.array_equal(labels.held_out, split_labels(y, 4).held_out)


def test_whole_people_are_held_out_where_the_data_say_whose_samples_are():
    y = np.tile(np.arange(3), 40).astype(np.int64)
    ids = np.repeat(np.arange(8), 15)
    labels = split_labels(y, 3, Owners("subject", ids))

    out = set(ids[labels.held_out])
    assert len(labels.held_out) == 30
    assert not out & set(ids[labels.training])
    assert labels.rule == f"all of subject {', '.join(str(one) for one in sorted(out))}"


@pytest.mark.parametrize(
    "y, message",
    [([0, 1, 7], "y holds class 7; the model's 3 outputs"), ([0, -1], "class -1"), ([0, 1, 2], "none can be held out")],
)
def test_labels_that_cannot_train_a_head_are_refused(y, message):
    with pytest.raises(ConversionError, match=message):
        split_labels(np.array(y, np.int64), 3)
