# SPDX-License-Identifier: Apache-2.0
"""The converted model as the coordinator sees it: packages, hashes, accuracy of the deployed form."""

import numpy as np
import pytest

from fedmote.config import CellConfig
from fedmote.coordinator import DeployedPartition
from fedmote.errors import ConfigError, ConversionError, PackageError
from fedmote.package.file import Package
from fedmote.package.partition import Partition
from fedmote.store import Checkpoints
from fedmote.tensors import dump_safetensors
from fedmote.wire.blobs import encode_head_update

from .conversion import HEAD_NAMES, RANGES, tensors, write_conversion


@pytest.fixture
def directory(tmp_path):
    return write_conversion(tmp_path / "tiny")


@pytest.fixture
def deployed(directory):
    return DeployedPartition(directory, directory / "test.npz")


def test_first_model_is_the_conversion_and_its_packages_are_the_converted_files(deployed, directory):
    first, ranges = deployed.first_model()
    assert dump_safetensors(first) == dump_safetensors(tensors())
    assert ranges == RANGES
    package, digest = deployed.device_form("posix", first, ranges, 0)
    converted = Package.read(directory / "tiny-posix.fmp")
    assert (package, digest) == (converted.device_form(), converted.hash)
    assert set(deployed.boards) == {"posix", "stm32f405"}


def test_pushed_package_is_that_of_a_full_conversion(deployed, directory):
    new, ranges = tensors(5), {"x": (-2.0, 2.0), "f": (0.0, 7.0)}
    expected = Partition.load(directory).push(new, ranges, 3).packages["stm32f405"]
    assert deployed.device_form("stm32f405", new, ranges, 3) == (expected.device_form(), expected.hash)


def test_new_head_alone_keeps_the_package(deployed):
    first, ranges = deployed.first_model()
    newer = {**first, "head.bias": np.array([9.0, -9.0], np.float32)}
    assert deployed.device_form("posix", newer, ranges, 2) == deployed.device_form("posix", first, ranges, 0)


@pytest.mark.parametrize("seed", [0, 5])
def test_accuracy_is_that_of_the_int8_encoder_and_the_float_head(deployed, directory, seed):
    data = np.load(directory / "test.npz")
    new = tensors(seed)
    expected = Partition.load(directory).push(new, RANGES, 1).evaluate(data["x"], data["y"])
    assert deployed.evaluate(new, RANGES, 1) == expected
    newer = {**new, "head.bias": np.array([99.0, -99.0], np.float32)}
    assert deployed.evaluate(newer, RANGES, 2) == float((data["y"] == 0).mean())


def test_without_test_data_there_is_no_accuracy(directory):
    assert DeployedPartition(directory).evaluate(tensors(), RANGES, 0) is None


@pytest.mark.parametrize("has_test_data", [True, False])
def test_model_of_which_no_package_can_be_made_is_refused_before_it_is_committed(directory, has_test_data):
    deployed = DeployedPartition(directory, directory / "test.npz" if has_test_data else None)
    with pytest.raises(ConversionError):
        deployed.evaluate(tensors() | {"encoder.bias": np.full(3, np.nan, np.float32)}, RANGES, 1)


# ---- whole rounds of it -----------------------------------------------------------------------------------------------

CELL = (CellConfig("home-1", ("board-1",), "phone-1"),)


def run_of(site, deployed, update, **changes):
    """Three rounds in which the partner reports `update`, deltas by name."""
    one = site(rounds=3, cells=CELL, **changes)
    one.partition = deployed
    one.actors["board-1"].blob_of = lambda actor: encode_head_update(np.zeros(8, np.float32))
    one.actors["phone-1"].blob_of = lambda actor: dump_safetensors(update)
    return one, one.serve()


@pytest.mark.parametrize("has_test_data", [True, False])
def test_layer_that_died_in_a_round_keeps_its_range_and_the_run_goes_on(site, directory, has_test_data):
    deployed = DeployedPartition(directory, directory / "test.npz" if has_test_data else None)
    dead = {"encoder.bias": np.full(3, -1000, np.float32), "range/f": np.zeros(2, np.float32)}
    one, result = run_of(site, deployed, dead)
    assert result.is_complete
    assert [entry.state for entry in result.rounds] == ["committed"] * 3
    model = Checkpoints(one.config.run.state_directory / "checkpoints").load(3)
    assert model.ranges == RANGES
    assert model.tensors["encoder.bias"].max() < -900


def test_merge_that_no_board_can_run_is_abandoned_and_the_model_stays(site, directory):
    """Finite numbers, but the sum of a neuron leaves int32."""
    huge = {"encoder.bias": np.full(3, 3e38, np.float32), "range/f": np.array([0, 1e-30], np.float32)}
    one, result = run_of(site, DeployedPartition(directory), huge, max_failed_rounds=1)
    assert (result.version, result.rounds[1].state) == (1, "abandoned")
    assert "dense" in result.complaint or "encoder" in result.complaint
    assert one.serve().version >= 1  # a second start finds a sound state


def test_shape_names_head_and_frozen_input(deployed):
    shape = deployed.shape(*deployed.first_model())
    assert (shape.head, shape.input, shape.num_head_parameters) == (HEAD_NAMES, "x", 8)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda d: (d / "checkpoint.safetensors").unlink(), "checkpoint.safetensors"),
        (lambda d: (d / "checkpoint.safetensors").write_bytes(dump_safetensors(tensors(9))), "convert the model again"),
        (lambda d: (d / "checkpoint.safetensors").write_bytes(dump_safetensors({"a": np.zeros(1)})), "is missing"),
        (lambda d: np.savez(d / "test.npz", x=np.zeros((3, 4))), "key .y. is missing"),
        (lambda d: np.savez(d / "test.npz", x=np.zeros((3, 4)), y=np.zeros(2)), "expected"),
        (lambda d: (d / "test.npz").write_bytes(b"PK"), "npz"),
    ],
)
def test_files_that_do_not_belong_together_are_refused_by_name(directory, damage, word):
    damage(directory)
    with pytest.raises(ConfigError, match=word):
        DeployedPartition(directory, directory / "test.npz")


def test_directory_without_packages_is_refused(tmp_path):
    with pytest.raises(PackageError, match="convert"):
        DeployedPartition(tmp_path)
