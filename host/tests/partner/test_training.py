# SPDX-License-Identifier: Apache-2.0
"""Training of the whole model: torch's own loop is the judge."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedmote.errors import ConfigError
from fedmote.lab.models import digits_cnn
from fedmote.partner.training import Recipe, Samples, even_batches, load_factory, read_tensors, train, write_tensors

SEED = 7


def some_samples(count=37):
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    x = generator.random((count, 1, 8, 8), np.float32)
    y = generator.integers(0, 10, count)
    mask = generator.integers(0, 8, count).astype(np.uint32)
    return Samples(x, y, mask)


def plain_torch_loop(model, samples, recipe):
    """The loop that anyone would write: per epoch the samples whose bit is set, shuffled, in even batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)
    generator = np.random.default_rng(recipe.seed)
    model.train()
    for epoch in range(recipe.epochs):
        members = [i for i, mask in enumerate(samples.epoch_mask) if int(mask) >> epoch & 1]
        order = [members[i] for i in generator.permutation(len(members))]
        size, larger = divmod(len(order), -(-len(order) // recipe.batch))
        while order:
            cut = size + (larger > 0)
            batch, order, larger = order[:cut], order[cut:], larger - 1
            optimizer.zero_grad()
            F.cross_entropy(model(torch.tensor(samples.x[batch])), torch.tensor(samples.y[batch])).backward()
            optimizer.step()
    model.eval()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_with_epoch_masks_equals_a_plain_torch_loop(momentum):
    samples, recipe = some_samples(), Recipe(3, 8, 0.05, momentum, (1, 2, 3))
    one, other = digits_cnn(), digits_cnn()
    outcome = train(one, samples, recipe)
    plain_torch_loop(other, samples, recipe)
    for name, values in read_tensors(other).items():
        np.testing.assert_allclose(outcome.tensors[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_batch_norm_statistics_are_among_the_tensors_and_move():
    model = digits_cnn()
    before = read_tensors(model)
    after = train(model, some_samples(), Recipe(1, 8, 0.05, 0.0)).tensors
    assert {"bn1.running_mean", "bn1.running_var"} <= after.keys()
    assert not np.array_equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert all("num_batches" not in name for name in after)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not():
    runs = [train(digits_cnn(), some_samples(), Recipe(2, 8, 0.05, 0.9, seed)).tensors for seed in ((1,), (1,), (2,))]
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_num_examples_counts_the_first_epoch_and_num_trained_all():
    samples = Samples(np.zeros((5, 1, 8, 8), np.float32), np.zeros(5, np.int64), np.array([1, 3, 2, 2, 0], np.uint32))
    assert samples.num_examples == 2
    assert train(digits_cnn(), samples, Recipe(2, 8, 0.01, 0.0)).num_trained == 2 + 3


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_batches_are_even_hold_every_sample_once_and_never_one_alone(batch):
    for count in range(2, 60):
        parts = even_batches(np.arange(count), batch)
        assert np.array_equal(np.concatenate(parts), np.arange(count))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        assert max(sizes) <= max(batch, 3)


def test_a_single_sample_is_not_trained():
    samples = Samples.of_all_epochs(np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64))
    assert train(digits_cnn(), samples, Recipe(1, 8, 0.01, 0.0)).num_trained == 0


def test_training_lowers_the_loss_that_it_reports():
    outcome = train(digits_cnn(), some_samples(), Recipe(3, 8, 0.05, 0.9))
    assert 0 < outcome.loss_after < outcome.loss


def test_a_checkpoint_of_another_model_is_refused_by_name():
    tensors = read_tensors(digits_cnn())
    with pytest.raises(ConfigError, match="unknown"):
        write_tensors(digits_cnn(), {**tensors, "conv9.weight": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="shape"):
        write_tensors(digits_cnn(), {**tensors, "head.bias": np.zeros(3, np.float32)})
    tensors.pop("head.bias")
    with pytest.raises(ConfigError, match=r"head\.bias is missing"):
        write_tensors(digits_cnn(), tensors)


def test_a_missing_model_function_is_a_configuration_error():
    assert load_factory("fedmote.lab.models:digits_cnn") is digits_cnn
    for name in ("fedmote.lab.models:nothing", "no.such.module:build"):
        with pytest.raises(ConfigError, match=name.split(":")[1]):
            load_factory(name)
