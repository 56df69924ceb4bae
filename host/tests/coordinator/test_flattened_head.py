# SPDX-License-Identifier: Apache-2.0
"""Whole rounds of a model that is cut right behind a flatten: its head has other columns on a device than in a checkpoint."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.config import CellConfig, StrategyConfig
from fedmote.coordinator import DeployedPartition
from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.partition import run_features
from fedmote.partner.training import Samples, write_tensors
from fedmote.partner.update import Trainer
from fedmote.store import Checkpoints
from fedmote.wire.blobs import encode_head_update
from fedmote_convert.output import write
from fedmote_convert.tiers import convert_tiers

SEED = 11
SHAPE, CLASSES = (2, 6, 5), 3
CELL = (CellConfig("home-1", ("board-1",), "phone-1"),)
ALONE = (CellConfig("home-1", ("board-1",)),)


def build():
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 3, CLASSES)).eval()


def samples():
    """Noise around one pattern per class."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    y = np.arange(90) % CLASSES
    patterns = generator.normal(size=(CLASSES, *SHAPE))
    return (patterns[y] + 0.7 * generator.normal(size=(90, *SHAPE))).astype(np.float32), y.astype(np.int64)


@pytest.fixture
def deployed(tmp_path):
    x, y = samples()
    write(convert_tiers(build(), x, [Board.load("posix")], model_id="flat", cut="2"), tmp_path / "flat")
    np.savez(tmp_path / "test.npz", x=x, y=y)
    partition = DeployedPartition(tmp_path / "flat", tmp_path / "test.npz")
    assert partition.partition.head[0].chw == (4, 4, 3)
    return partition


class Lesson:
    """What device and partner do with what they were sent; the device works in its own order of columns, as the C does."""

    def __init__(self, one, deployed):
        self.x, self.y = samples()
        self.checkpoints = Checkpoints(one.config.run.state_directory / "checkpoints")
        self.deployed = deployed
        self.differences = []

    def device(self, actor):
        checkpoint = self.checkpoints.load(actor.plan["version"])
        package = self.deployed.packages(checkpoint.tensors, checkpoint.ranges, checkpoint.version).package
        (layer,) = Package.read(actor.blobs[0]).head
        weights, bias = layer.weights, layer.bias
        if len(actor.blobs) == 2:
            newer = np.frombuffer(actor.blobs[1], "<f4")
            weights, bias = newer[: weights.size].reshape(weights.shape), newer[weights.size :]
        features = run_features(package, self.x)
        self.compare(checkpoint, features @ weights.T + bias)
        new_weights, new_bias = weights.copy(), bias.copy()
        for _ in range(20):
            logits = features @ new_weights.T + new_bias
            error = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = error / error.sum(axis=1, keepdims=True) - np.eye(CLASSES)[self.y]
            new_weights -= (0.05 * error.T @ features / len(self.y)).astype(np.float32)
            new_bias -= (0.05 * error.mean(axis=0)).astype(np.float32)
        return encode_head_update(np.concatenate([(new_weights - weights).ravel(), new_bias - bias]))

    def compare(self, checkpoint, logits):
        module = build()
        write_tensors(module, checkpoint.tensors)
        with torch.no_grad():
            expected = module(torch.from_numpy(self.x)).numpy()
        self.differences.append(float(np.abs(logits - expected).max() / np.abs(expected).max()))

    def partner(self, actor):
        return Trainer(build, Samples.of_all_epochs(self.x, self.y), 0).update(actor.id, actor.plan, actor.blobs[0], ()).blob


@pytest.mark.parametrize(("cells", "form"), [(ALONE, "alternating"), (CELL, "alternating"), (CELL, "simultaneous")])
def test_head_behind_a_flatten_is_learnt_in_whole_rounds(site, deployed, cells, form):
    one = site(rounds=3, cells=cells, strategy=StrategyConfig(form=form, partner_learning_rate=0.01))
    one.partition = deployed
    lesson = Lesson(one, deployed)
    one.actors["board-1"].blob_of = lesson.device
    if "phone-1" in one.actors:
        one.actors["phone-1"].blob_of = lesson.partner
    result = one.serve()
    assert result.is_complete
    assert len(lesson.differences) == (2 if cells is CELL and form == "alternating" else 3)
    # Quantization moves a logit by some percent of the largest one; a column in the wrong place by much more.
    assert max(lesson.differences) < 0.06
    assert result.first_accuracy < 0.6
    assert result.accuracy > 0.95
