# SPDX-License-Identifier: Apache-2.0
"""Recipes: what they keep of a module's function, what they gain, and that pushes repeat them without data."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.errors import ConfigError, ConversionError
from fedmote.package.boards import Board
from fedmote.package.execute import observe, run_float, run_int8
from fedmote.package.file import Package
from fedmote.package.fold import bind
from fedmote.package.graph import WEIGHTED, OpKind
from fedmote.package.partition import push
from fedmote.package.quantize import dequantize_values, observation_points, quantize, quantize_input
from fedmote_convert.calibration import RangeRule, Recipe, calibrate
from fedmote_convert.capture import capture
from fedmote_convert.clipping import least_squares_range, percentile_range
from fedmote_convert.convert import convert
from fedmote_convert.cut import cut_at
from fedmote_convert.mixed_precision import NUM_SAMPLES, allot_bits, sensitivities
from fedmote_convert.passes import run_passes

from .conftest import seeded

PLAIN = Recipe(is_equalised=False, correction_samples=0, is_steady=False)


class Separable(nn.Module):
    """Pairs of all kinds that are equalised: to depthwise, pointwise, grouped and dense layers, through pads and pools."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8)
        self.pointwise = nn.Conv2d(16, 12, 1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(8, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.pointwise(nn.functional.leaky_relu(self.depthwise(x), 0.1)))
        x = torch.relu(self.grouped(x))
        return self.head(torch.relu(self.dense(torch.flatten(self.pool(x), 1))))


def uneven(seed):
    """A module whose channels differ by factors of up to sixteen, as folded normalisations leave them."""
    module = seeded(Separable(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (module.norm, module.depthwise, module.pointwise):
            factors = 2.0 ** (4 * torch.rand(len(layer.weight), generator=generator) - 2)
            layer.weight.mul_(factors.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.mul_(factors)
    return module


def prepared(seed, size=8):
    """Template, tensors and samples (channels last) of an uneven module."""
    captured = capture(uneven(seed), (2, size, size))
    x = np.random.default_rng(seed).standard_normal((120, size, size, 2)).astype(np.float32)
    return run_passes(cut_at(captured).encoder), captured.tensors, x


def sqnr_db(template, tensors, ranges, x):
    graph = bind(template, tensors)
    exact = run_float(graph, x).astype(np.float64)
    int8 = quantize(graph, {name: ranges[name] for name in observation_points(graph)})
    made = dequantize_values(int8.activations[int8.output], run_int8(int8, quantize_input(int8, x)))
    return 10 * np.log10((exact**2).sum() / ((exact - made.reshape(exact.shape)) ** 2).sum())


@pytest.mark.parametrize("seed", range(4))
def test_equalisation_never_changes_the_function(seed):
    template, tensors, x = prepared(seed)
    equalised, _ = calibrate(template, tensors, x, Recipe(correction_samples=0))
    exact = run_float(bind(template, tensors), x)

    assert sum(op.source is not None and op.source.input_factors is not None for op in equalised.ops) == 4
    np.testing.assert_allclose(run_float(bind(equalised, tensors), x), exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("seed", range(4))
def test_ranges_of_equalised_activations_are_those_a_partner_observes(seed):
    template, tensors, x = prepared(seed)
    equalised, ranges = calibrate(template, tensors, x, Recipe(headroom=1.0, is_steady=False))
    seen = observe(bind(equalised, tensors), x)

    assert seen.keys() == ranges.keys()
    for name, limits in seen.items():
        np.testing.assert_allclose(ranges[name], limits, rtol=1e-5, atol=1e-5)


def test_equalisation_and_correction_gain_decibels_on_uneven_channels():
    gains = []
    for seed in range(6):
        template, tensors, x = prepared(seed)
        plain, default = (sqnr_db(*calibrate_all(template, tensors, x, recipe), x) for recipe in (PLAIN, Recipe()))
        gains.append(default - plain)
    print("gains in dB", gains)
    assert np.mean(gains) > 2
    assert min(gains) > -0.5


def calibrate_all(template, tensors, x, recipe):
    kept, ranges = calibrate(template, tensors, x, recipe)
    return kept, tensors, ranges


def test_last_bits_of_weights_change_no_number_of_a_steady_recipe():
    """As exporters leave them: of every third tensor the weights of one channel are off by one or two in their last bit."""
    numbers = {True: 0, False: 0}
    for seed, is_steady in product(range(6), numbers):
        template, tensors, x = prepared(seed)
        moved = {name: value.copy() for name, value in tensors.items()}
        for number, name in enumerate(sorted(moved)):
            if number % 3 == seed % 3:
                moved[name][0] *= np.float32(1 + 2.0**-22)
        graphs = []
        for state in (tensors, moved):
            kept, ranges = calibrate(template, state, x, Recipe(is_steady=is_steady))
            graphs.append(quantize(bind(kept, state), ranges))
        numbers[is_steady] += sum(
            np.count_nonzero(one != other)
            for before, after in zip(graphs[0].ops, graphs[1].ops, strict=True)
            for one, other in zip(numbers_of(graphs[0], before), numbers_of(graphs[1], after), strict=True)
        )
    print("numbers that differ", numbers)
    assert numbers[True] == 0
    assert numbers[False] >= 2 * 6


def numbers_of(graph, op):
    output = graph.activations[op.output].quantization
    weights = () if op.weights is None else (op.weights, op.bias, op.weight_quantization.scale)
    return (output.scale, output.zero_point, *weights)


def test_ranges_of_a_steady_recipe_hold_what_was_seen_and_are_at_most_a_hundredth_wider():
    template, tensors, x = prepared(2)
    _, exact = calibrate(template, tensors, x, Recipe(is_steady=False))
    _, steady = calibrate(template, tensors, x, Recipe())

    assert steady.keys() == exact.keys()
    for name, (low, high) in exact.items():
        assert low * (1 + 2.0**-7) <= steady[name][0] <= low
        assert high <= steady[name][1] <= high * (1 + 2.0**-7)


def test_a_clamp_at_six_several_readers_and_the_features_are_not_equalised():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
            self.three, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = nn.functional.relu6(self.one(x))
            x = torch.relu(self.two(x))
            x = x + self.three(x)
            return self.head(x.mean(dim=(2, 3)))

    captured = capture(seeded(Network(), 1), (2, 4, 4))
    template = run_passes(cut_at(captured).encoder)
    x = np.random.default_rng(1).standard_normal((20, 4, 4, 2)).astype(np.float32)
    kept, _ = calibrate(template, captured.tensors, x, Recipe())

    sources = [op.source for op in kept.ops if op.source is not None]
    assert len(sources) == 3
    assert all(source.input_factors is None and source.output_factors is None for source in sources)


def test_corrected_biases_bring_the_means_of_the_features_back():
    errors = {}
    for samples in (0, 120):
        template, tensors, x = prepared(3)
        template = replace(template, ops=tuple(replace(op, weight_bits=4 if op.kind in WEIGHTED else 8) for op in template.ops))
        kept, ranges = calibrate(template, tensors, x, Recipe(is_equalised=False, correction_samples=samples))
        graph = bind(kept, tensors)
        int8 = quantize(graph, ranges)
        made = dequantize_values(int8.activations[int8.output], run_int8(int8, quantize_input(int8, x)))
        shift = made.reshape(len(x), -1).mean(axis=0) - run_float(graph, x).reshape(len(x), -1).mean(axis=0)
        errors[samples] = float(np.abs(shift).mean())
    print("mean shift of the features", errors)
    assert errors[120] < 0.5 * errors[0]


def test_new_weights_are_corrected_for_their_own_rounding():
    """Means are stored, not corrections: what the old weights' rounding did says nothing of the new ones'."""
    template, tensors, x = prepared(5)
    moved = {
        name: (value + 0.03 * np.sin(np.arange(value.size).reshape(value.shape))).astype(np.float32)
        for name, value in tensors.items()
    }
    moved["norm.running_var"] = tensors["norm.running_var"]
    ranges = calibrate(template, moved, x, PLAIN)[1]
    kept = calibrate(template, tensors, x, Recipe(is_equalised=False))[0]

    assert sqnr_db(kept, moved, ranges, x) > sqnr_db(template, moved, ranges, x)


def test_a_push_equals_a_conversion_that_keeps_ranges_and_corrections_whatever_the_recipe():
    board = Board.load("posix")
    for seed, (rule, equalised, samples) in enumerate(product(RangeRule, (False, True), (0, 16))):
        recipe = Recipe(
            range_rule=rule,
            is_equalised=equalised,
            correction_samples=samples,
            is_dense_per_tensor=seed % 2 == 0,
            weight_budget_bytes=(None, 700, 500)[seed % 3],
        )
        module = uneven(seed)
        x = np.random.default_rng(seed).standard_normal((40, 2, 8, 8)).astype(np.float32)
        old = convert(module, x, [board], model_id="m", recipe=recipe).package
        module.load_state_dict(uneven(seed + 100).state_dict())
        new = convert(module, x, [board], model_id="m", recipe=Recipe.of(old), version=1)
        pushed = push(Package.read(old.to_bytes()), new.tensors, None, 1)

        assert pushed.to_bytes() == new.package.to_bytes(), f"seed {seed}: {recipe}"
        assert len(pushed.device_form()) == len(old.device_form())
        assert Package.read(pushed.to_bytes()).hash == pushed.hash


def test_layers_of_four_bits_fit_the_budget_and_are_the_best_set_of_all():
    template, tensors, x = prepared(7)
    table = sensitivities(template, tensors, x[:NUM_SAMPLES])
    whole, least = sum(layer.bytes_8 for layer in table), sum(layer.bytes_4 for layer in table)
    for budget in (least, (least + whole) // 2, whole - 1, whole):
        kept, chosen = allot_bits(template, tensors, x, budget)
        used = sum(-(-np.asarray(op.weights).size * op.weight_bits // 8) for op in bind(kept, tensors).ops if op.kind in WEIGHTED)
        error = sum(layer.error for layer in chosen if layer.bits == 4)
        sets = product((False, True), repeat=len(table))
        fitting = (
            sum(layer.error for layer, narrow in zip(table, choice, strict=True) if narrow)
            for choice in sets
            if sum(layer.bytes_4 if narrow else layer.bytes_8 for layer, narrow in zip(table, choice, strict=True)) <= budget
        )

        assert used <= budget
        assert error == pytest.approx(min(fitting))


def test_a_budget_that_no_choice_of_bits_meets_is_refused_with_the_least_bytes():
    template, tensors, x = prepared(7)
    least = sum(layer.bytes_4 for layer in sensitivities(template, tensors, x))

    with pytest.raises(ConversionError, match=f"take {least} bytes with 4 bits in every layer, the budget is {least - 1} bytes"):
        allot_bits(template, tensors, x, least - 1)


def test_a_dense_layer_has_one_scale_where_old_runtimes_want_it():
    template, tensors, x = prepared(2)
    kept, ranges = calibrate(template, tensors, x, Recipe(is_dense_per_tensor=True))
    scales = {
        op.kind: op.weight_quantization.scale.size for op in quantize(bind(kept, tensors), ranges).ops if op.kind in WEIGHTED
    }

    assert scales[OpKind.FULLY_CONNECTED] == 1
    assert scales[OpKind.CONV_2D] > 1


def test_dense_layers_alone_divide_by_even_numbers_and_a_repetition_keeps_it():
    template, tensors, x = prepared(2)
    kept, ranges = calibrate(template, tensors, x, Recipe())
    repeated, _ = calibrate(template, tensors, x, Recipe(template=kept, ranges=ranges))
    other, _ = calibrate(template, tensors, x, Recipe(has_even_divisors=False))

    assert {op.kind for op in kept.ops if op.has_even_divisors} == {OpKind.FULLY_CONNECTED}
    assert [op.has_even_divisors for op in repeated.ops] == [op.has_even_divisors for op in kept.ops]
    assert not any(op.has_even_divisors for op in other.ops)


def test_a_percentile_leaves_its_share_of_the_values_outside():
    values = np.random.default_rng(0).standard_normal(200_000)
    counts, _ = np.histogram(values, 4096, (values.min(), values.max()))
    low, high = percentile_range(counts, float(values.min()), float(values.max()), 99.0)

    assert (values > high).mean() == pytest.approx(0.01, abs=1e-3)
    assert (values < low).mean() == pytest.approx(0.01, abs=1e-3)


def test_the_least_squares_range_is_better_than_the_extremes_and_than_its_neighbours():
    values = np.random.default_rng(1).laplace(size=200_000)
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, 4096, (low, high))

    def error(ends):
        scale = (ends[1] - ends[0]) / 255
        rounded = np.clip(np.round((values - ends[0]) / scale), 0, 255) * scale + ends[0]
        return ((values - rounded) ** 2).mean()

    best = least_squares_range(counts, low, high, 48)
    assert error(best) < 0.9 * error((low, high))
    for factor in (0.8, 1.25):
        assert error(best) < error((best[0] * factor, best[1] * factor))


def test_ranges_of_another_model_are_refused_by_name():
    template, tensors, x = prepared(1)
    points = observation_points(template)
    ranges = dict.fromkeys(points, (-1.0, 1.0))
    missing = {name: limits for name, limits in ranges.items() if name != points[1]}

    assert calibrate(template, tensors, x, Recipe(ranges=ranges))[1][points[1]] == (-1.0, 1.0)
    with pytest.raises(ConfigError, match=f"{points[1]} has no range"):
        calibrate(template, tensors, x, Recipe(ranges=missing))
    with pytest.raises(ConfigError, match="nothing is no activation"):
        calibrate(template, tensors, x, Recipe(ranges=ranges | {"nothing": (0.0, 1.0)}))
    with pytest.raises(ConfigError, match="'w' with 4 bits"):
        calibrate(template, tensors, x, Recipe(weight_bits={"w": 4}))


@pytest.mark.parametrize(
    "options", [{"percentile": 50.0}, {"percentile": 100.1}, {"mse_steps": 1}, {"headroom": 0.9}, {"correction_samples": -1}]
)
def test_impossible_recipes_are_refused(options):
    with pytest.raises(ConfigError):
        Recipe(**options)
