# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from fedmote.errors import ConversionError, PackageError
from fedmote.package.boards import Board
from fedmote.package.execute import run_float
from fedmote.package.file import Package
from fedmote.package.fold import bind
from fedmote.package.importer import import_tflite
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote.package.partition import Partition, evaluate, push, run_features, with_frozen_input
from fedmote.package.specimen import random_int8_graph
from fedmote.package.tflite_writer import write


def test_pushed_package_equals_a_full_conversion_with_the_same_ranges(packages, convert, checkpoint, ranges_of):
    for seed in range(2, 8):
        tensors = checkpoint(seed)
        ranges = ranges_of(tensors) | {"x": packages["posix"].host.ranges["x"]}
        converted = convert(tensors, ranges, seed)
        for board, package in packages.items():
            assert push(package, tensors, ranges, seed).to_bytes() == converted[board].to_bytes()


def test_push_keeps_the_range_of_the_input_whatever_was_observed(packages, checkpoint, ranges_of):
    tensors = checkpoint(3)
    wild = ranges_of(tensors) | {"x": (-1000.0, 1000.0)}
    pushed = push(packages["posix"], tensors, wild, 2)
    assert pushed.host.ranges["x"] == packages["posix"].host.ranges["x"]
    assert pushed.header.input_scale == packages["posix"].header.input_scale
    assert pushed.header.feature_scale != packages["posix"].header.feature_scale


def test_push_without_ranges_keeps_all_of_them_and_the_length(packages, checkpoint):
    pushed = push(packages["posix"], checkpoint(5), None, 2)
    assert pushed.host.ranges == packages["posix"].host.ranges
    assert len(pushed.device_form()) == len(packages["posix"].device_form())
    assert pushed.hash != packages["posix"].hash


def test_pushing_the_same_checkpoint_gives_the_same_bytes(packages, checkpoint):
    for package in packages.values():
        assert push(package, checkpoint(1), package.host.ranges, 1).to_bytes() == package.to_bytes()


def test_head_goes_along(packages, checkpoint):
    (layer,) = push(packages["posix"], checkpoint(6), None, 2).head
    weights, bias = layer.weights, layer.bias
    np.testing.assert_array_equal(weights, checkpoint(6)["head.weight"])
    np.testing.assert_array_equal(bias, checkpoint(6)["head.bias"])


def test_checkpoint_of_another_model_is_refused(packages, checkpoint):
    tensors = checkpoint(1)
    del tensors["norm.bias"]
    with pytest.raises(ConversionError, match=r"norm\.bias"):
        push(packages["posix"], tensors, None, 2)


def test_imported_package_has_nothing_to_push_into(packages):
    package, _ = import_tflite(write(random_int8_graph(0)), "m.tflite", Board.load("posix"), "m", classes=3)
    with pytest.raises(PackageError, match="imported"):
        push(package, {}, None, 1)


def test_partition_loads_saves_and_pushes_for_all_boards(packages, checkpoint, ranges_of, tmp_path):
    Partition(packages).save(tmp_path)
    partition = Partition.load(tmp_path)
    assert set(partition.packages) == {"posix", "stm32f405"}
    assert partition.observation_points == ("x", "c", "d", "s", "m", "f")
    assert partition.head_tensor_names == ("head.weight", "head.bias")
    assert set(partition.encoder_tensor_names) | set(partition.head_tensor_names) == set(checkpoint(1))
    tensors = checkpoint(2)
    pushed = partition.push(tensors, ranges_of(tensors), 7)
    assert (pushed.version, pushed.model_id) == (7, "specimen")
    for board, package in packages.items():
        assert pushed.packages[board].to_bytes() == push(package, tensors, ranges_of(tensors), 7).to_bytes()


def test_partition_of_two_conversions_is_refused(packages, convert, checkpoint, ranges_of, tmp_path):
    other = convert(checkpoint(2), ranges_of(checkpoint(2)), 1)
    (tmp_path / "a.fmp").write_bytes(packages["posix"].to_bytes())
    (tmp_path / "b.fmp").write_bytes(other["stm32f405"].to_bytes())
    with pytest.raises(PackageError, match="not of one conversion"):
        Partition.load(tmp_path)
    (tmp_path / "b.fmp").write_bytes(packages["posix"].to_bytes())
    with pytest.raises(PackageError, match="second package"):
        Partition.load(tmp_path)


def test_directory_without_packages_is_refused(tmp_path):
    with pytest.raises(PackageError, match=r"no \.fmp files"):
        Partition.load(tmp_path)


def test_accuracy_is_that_of_the_int8_encoder_and_the_float_head(packages, checkpoint, samples, template):
    tensors = checkpoint(1)
    features = run_float(bind(template, tensors), samples.transpose(0, 2, 3, 1))
    labels = (features @ tensors["head.weight"].T + tensors["head.bias"]).argmax(axis=1)
    assert evaluate(packages["posix"], samples, labels) >= 0.95  # the float model itself would be at 1
    assert evaluate(packages["posix"], samples, (labels + 1) % 10) <= 0.05
    other = tensors | {"head.weight": checkpoint(9)["head.weight"]}
    assert evaluate(packages["posix"], samples, labels, other) < 0.9


def test_accuracy_of_no_samples_is_refused(packages, samples):
    with pytest.raises(ConversionError):
        evaluate(packages["posix"], samples[:0], np.zeros(0, np.int64))


def test_features_have_a_row_for_each_sample(packages, samples):
    assert run_features(packages["posix"], samples).shape == (50, 16)


def test_version_is_the_only_difference_of_two_pushes_with_equal_weights(packages, checkpoint):
    one, two = (push(packages["posix"], checkpoint(4), None, version) for version in (1, 2))
    assert [kind for kind in one.sections if one.sections[kind] != two.sections[kind]] == [1, 128]
    assert Package.read(two.to_bytes()).host.version == 2


@pytest.mark.parametrize(
    ("sample", "layout", "shape"), [((3, 4, 5), "nchw", (1, 4, 5, 3)), ((9, 128), "ncw", (1, 1, 128, 9)), ((64,), "nf", (1, 64))]
)
def test_samples_of_torch_are_turned_to_channels_last(sample, layout, shape):
    assert (layout_of(sample), graph_shape(sample)) == (layout, shape)
    x = np.arange(2 * np.prod(sample)).reshape(2, *sample)
    arranged = arrange(x, layout, shape)
    assert arranged.shape == (2, *shape[1:])
    np.testing.assert_array_equal(np.moveaxis(arranged, -1, 1).reshape(x.shape), x)
    with pytest.raises(ConversionError):
        arrange(x[..., :-1], layout, shape)


def test_range_of_the_input_stays_and_missing_ones_are_kept():
    assert with_frozen_input({"a": (0.0, 9.0), "b": (0.0, 8.0)}, {"a": (0.0, 1.0), "c": (0.0, 2.0)}, "a") == {
        "a": (0.0, 1.0), "b": (0.0, 8.0), "c": (0.0, 2.0),
    }  # fmt: skip
