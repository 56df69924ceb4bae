# SPDX-License-Identifier: Apache-2.0
"""The converted model as the coordinator sees it: packages, hashes, accuracy of the deployed form."""

import numpy as np
import pytest

from fedmote.coordinator import DeployedPartition
from fedmote.errors import ConfigError, PackageError
from fedmote.package.file import Package
from fedmote.package.partition import Partition
from fedmote.tensors import dump_safetensors

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
