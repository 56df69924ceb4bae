# SPDX-License-Identifier: Apache-2.0
"""Whole conversions, judged by TensorFlow Lite Micro, by LiteRT and by the module itself."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.errors import ConversionError, DoesNotFitError, FedmoteError
from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.graph import Activation, OpKind
from fedmote.package.partition import evaluate, push, run_features
from fedmote.package.quantize import dequantize_values, quantize_input
from fedmote_convert import forms
from fedmote_convert.bench.interpreters import run_litert, run_tflite_micro
from fedmote_convert.calibration import Recipe
from fedmote_convert.convert import convert
from fedmote_convert.passes import run_passes

DEMO_BOARDS = ("posix", "stm32f405")


def boards(*names):
    return [Board.load(name) for name in names or DEMO_BOARDS]


def converted(sample, *names, **options):
    return convert(sample.module, sample.x, boards(*names), model_id=sample.name, y=sample.y, **options)


def int8_inputs(package, x, seed=7):
    """200 inputs: half of them real samples, half uniform noise with both extremes."""
    graph = package.graph
    shape = graph.activations[graph.input].shape
    noise = np.random.default_rng(seed).integers(-128, 128, (100, *shape[1:])).astype(np.int8)
    noise[0], noise[1] = -128, 127
    axes = (0, *range(2, x.ndim), 1)
    real = quantize_input(graph, np.ascontiguousarray(x[:100].transpose(axes)).reshape(100, *shape[1:]))
    return np.concatenate([real, noise])


def tflite_micro(tflite, x):
    pytest.importorskip("tflite_micro")
    return run_tflite_micro(tflite, x)


def litert_reference(tflite, x):
    pytest.importorskip("ai_edge_litert")
    return run_litert(tflite, x, is_reference=True)


def test_the_encoder_equals_tflite_micro_in_every_byte(sample):
    package = converted(sample).package
    x = int8_inputs(package, sample.x_test)

    np.testing.assert_array_equal(run_int8(package.graph, x), tflite_micro(package.encoder_tflite, x))


def test_the_encoder_runs_in_litert_within_one_step(sample):
    package = converted(sample).package
    x = int8_inputs(package, sample.x_test)

    difference = run_int8(package.graph, x).astype(int) - litert_reference(package.encoder_tflite, x)

    assert np.abs(difference).max() <= 1


def test_features_keep_thirty_decibels_and_classes_their_winners(sample):
    quality = converted(sample).quality

    assert quality.sqnr_db >= 30
    assert quality.agreement >= 0.98
    assert quality.float_difference < 1e-5


def test_the_deployed_form_keeps_the_accuracy_on_samples_it_has_not_seen(sample):
    package = converted(sample).package
    with torch.no_grad():
        chosen = sample.module(torch.from_numpy(sample.x_test)).argmax(dim=1).numpy()
    accuracy = float((chosen == sample.y_test).mean())

    assert accuracy > 0.85
    assert evaluate(package, sample.x_test, sample.y_test) >= accuracy - 0.02
    assert evaluate(package, sample.x_test, chosen.astype(np.int64)) >= 0.97


def test_a_model_of_recorded_movements_keeps_bits_decibels_and_accuracy(recordings):
    conversion = converted(recordings)
    package = conversion.package
    with torch.no_grad():
        chosen = recordings.module(torch.from_numpy(recordings.x_test)).argmax(dim=1).numpy()
    accuracy = float((chosen == recordings.y_test).mean())
    x = int8_inputs(package, recordings.x_test)

    np.testing.assert_array_equal(run_int8(package.graph, x), tflite_micro(package.encoder_tflite, x))
    assert conversion.quality.sqnr_db >= 30
    assert accuracy > 0.75
    assert evaluate(package, recordings.x_test, recordings.y_test) >= accuracy - 0.01
    assert evaluate(package, recordings.x_test, chosen.astype(np.int64)) >= 0.98


def test_head_parameters_in_the_package_read_channels_last_features(residual):
    package = converted(residual).package
    with torch.no_grad():
        expected = residual.module(torch.from_numpy(residual.x_test)).numpy()

    logits = package.logits(run_features(package, residual.x_test))

    assert package.host.head[0].chw == (8, 4, 4)
    # The median: a sample outside the calibrated ranges saturates, a wrong order of columns ruins every logit.
    assert np.median(np.abs(logits - expected)) < 0.01 * np.abs(expected).max()


def test_an_encoder_holds_nothing_but_int8_operators_of_the_list(digits):
    kinds = [op.kind for op in converted(digits).package.graph.ops]

    conv, pool = OpKind.CONV_2D, OpKind.MAX_POOL_2D
    assert kinds == [conv, conv, pool, conv, pool, OpKind.MEAN]


def test_demo_models_fit_the_small_board_with_all_samples_cached(digits, windows):
    board = Board.load("stm32f405")
    for sample in (digits, windows):
        needs = converted(sample).packages["stm32f405"].cost_on(board)

        assert needs.fits
        assert needs.cached_samples == board.max_samples


def test_two_conversions_of_the_same_give_the_same_bytes(sample):
    first, second = converted(sample), converted(sample)

    assert first.quality == second.quality
    for name, package in first.packages.items():
        assert package.to_bytes() == second.packages[name].to_bytes()


def test_pushing_new_weights_equals_a_conversion_that_keeps_ranges_and_corrections(sample):
    old = converted(sample)
    moved = {name: (value * 1.05 + 0.01).astype(np.float32) for name, value in old.tensors.items()}
    module = copy.deepcopy(sample.module)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in moved.items()}, strict=False)
    new = converted(replace(sample, module=module), version=1, recipe=Recipe.of(old.package))

    for name, package in old.packages.items():
        assert push(package, moved, None, 1).to_bytes() == new.packages[name].to_bytes()


def test_the_order_of_a_models_boards_does_not_change_their_packages(digits):
    one, other = converted(digits), converted(digits, "stm32f405", "posix")

    assert one.packages["posix"].to_bytes() == other.packages["posix"].to_bytes()


def test_a_board_too_small_is_refused_with_bytes_needed_and_available(digits):
    tiny = replace(Board.load("stm32f405"), name="tiny", slot_bytes=4096)

    with pytest.raises(DoesNotFitError) as caught:
        convert(digits.module, digits.x, [*boards(), tiny], model_id="digits")

    assert (caught.value.board, caught.value.what, caught.value.available) == ("tiny", "slot", 4096)
    assert caught.value.needed == converted(digits).packages["stm32f405"].cost_on(tiny).slot_bytes
    assert caught.value.exit_code == 1


def test_an_arena_one_byte_too_small_is_refused(digits):
    needed = converted(digits).packages["stm32f405"].cost_on(Board.load("stm32f405")).arena_bytes
    exact = replace(Board.load("stm32f405"), name="exact", arena_bytes=needed)
    short = replace(exact, name="short", arena_bytes=needed - 1)

    convert(digits.module, digits.x, [exact], model_id="digits")
    with pytest.raises(DoesNotFitError, match=f"short: arena needs {needed} bytes, {needed - 1} are available"):
        convert(digits.module, digits.x, [short], model_id="digits")


def test_all_boards_that_do_not_fit_are_named(digits):
    small = [replace(Board.load("stm32f405"), name=name, slot_bytes=2048) for name in ("one", "two")]

    with pytest.raises(ConversionError, match=r"2 boards do not fit: board one: slot needs .*; board two: slot needs") as caught:
        convert(digits.module, digits.x, [*small, *boards("posix")], model_id="digits")

    assert caught.value.exit_code == 1


def test_a_graph_that_differs_from_the_module_is_our_error(digits, monkeypatch):
    def wrong_passes(graph):
        first, *rest = run_passes(graph).ops
        return replace(run_passes(graph), ops=(replace(first, activation=Activation.NONE), *rest))

    monkeypatch.setattr(forms, "run_passes", wrong_passes)

    with pytest.raises(FedmoteError, match="please report it") as caught:
        converted(digits)

    assert caught.value.exit_code == 4


def test_constant_calibration_samples_are_refused_with_the_activation():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()

    with pytest.raises(ConversionError, match=r"activation input: .*constant"):
        convert(module, np.ones((5, 1, 8, 8), np.float32), boards("posix"), model_id="m")


@pytest.mark.parametrize("x", [np.zeros((0, 1, 8, 8), np.float32), np.full((2, 1, 8, 8), np.nan, np.float32)])
def test_calibration_without_samples_or_with_nan_is_refused(x):
    with pytest.raises(ConversionError, match="calibration needs samples that are finite"):
        convert(nn.Flatten().eval(), x, boards("posix"), model_id="m")


def test_a_network_of_strides_and_dense_layers_equals_tflite_micro():
    torch.manual_seed(9)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 3 * 3, 20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, 3),
    ).eval()
    x = np.random.default_rng(9).standard_normal((200, 2, 12, 12)).astype(np.float32)

    package = convert(module, x, boards("posix"), model_id="m").package

    inputs = int8_inputs(package, x)
    np.testing.assert_array_equal(run_int8(package.graph, inputs), tflite_micro(package.encoder_tflite, inputs))
    np.testing.assert_array_equal(run_int8(package.graph, inputs), litert_reference(package.encoder_tflite, inputs))


def test_ten_dense_layers_equal_litert_where_they_divide_by_even_numbers_and_not_elsewhere():
    torch.manual_seed(10)
    layers = [layer for _ in range(10) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    module = nn.Sequential(*layers, nn.Linear(64, 3)).eval()
    for layer in layers[::3]:
        nn.init.kaiming_normal_(layer.weight)
    x = np.random.default_rng(10).standard_normal((200, 64)).astype(np.float32)

    differences = []
    for is_even in (True, False):
        recipe = Recipe(has_even_divisors=is_even)
        package = convert(module, x, boards("posix"), model_id="m", recipe=recipe).package
        inputs = quantize_input(package.graph, x)
        micro = tflite_micro(package.encoder_tflite, inputs)
        np.testing.assert_array_equal(run_int8(package.graph, inputs), micro)
        differences.append(int((litert_reference(package.encoder_tflite, inputs) != micro).sum()))

    assert differences[0] == 0
    assert differences[1] > 0


class Gate(nn.Module):
    """Means of the channels decide how much of each goes on."""

    def __init__(self, channels):
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.dense(x.mean((2, 3), keepdim=True)))


class Branches(nn.Module):
    """Two functions of one image side by side, one of them with a range of its own."""

    def __init__(self, channels):
        super().__init__()
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x):
        return torch.cat([nn.functional.silu(self.grouped(x)), x.softmax(1), torch.tanh(x[:, 1:])], 1)


def test_a_network_of_gates_branches_and_functions_equals_tflite_micro():
    torch.manual_seed(10)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        Gate(8),
        Branches(8),
        nn.Conv2d(23, 12, 1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).eval()
    x = np.random.default_rng(10).standard_normal((200, 2, 13, 12)).astype(np.float32)

    package = convert(module, x, boards("posix"), model_id="m").package

    inputs = int8_inputs(package, x)
    features = run_int8(package.graph, inputs)
    np.testing.assert_array_equal(features, tflite_micro(package.encoder_tflite, inputs))
    with torch.no_grad():
        exact = module[:-1](torch.from_numpy(x[:100])).numpy()
    noise = dequantize_values(package.graph.activations[package.graph.output], features[:100]).reshape(exact.shape) - exact
    assert 10 * np.log10((exact**2).sum() / (noise**2).sum()) > 30  # dB, limit of the design
    assert {OpKind.QUANTIZE, OpKind.CONCATENATION, OpKind.MUL, OpKind.LOGISTIC} <= {op.kind for op in package.graph.ops}
