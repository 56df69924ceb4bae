# SPDX-License-Identifier: Apache-2.0
"""From a template with its weights and calibration samples to what an int8 form needs: ranges, and a template that keeps them.

`calibrate` is the only place that looks at data. Its result, with the tensors, decides every byte of the packages: what it
finds by channel (equalisation factors, means of inputs) is kept in the template, so that new tensors are quantized in the same
way without data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError
from fedmote.package import fixed_point
from fedmote.package.execute import run_int8_op
from fedmote.package.file import Package
from fedmote.package.fold import bind
from fedmote.package.graph import WEIGHTED, Activations, Graph, Op, OpKind, Ranges, Tensors
from fedmote.package.quantize import (
    dequantize_values,
    observation_points,
    quantize,
    quantize_input,
    quantize_weights,
    significant,
)
from fedmote_convert.clipping import least_squares_range, percentile_range
from fedmote_convert.equalisation import equalise
from fedmote_convert.statistics import Channels, histograms, observe_channels

# Significant bits of ranges, means and weight scales. A network has thousands, and each lies on an edge with a chance that halves
# with every bit less; one that falls to the other side moves some weights or activations by a step.
_STEADY_BITS = 8


class RangeRule(StrEnum):
    """How the range of an activation follows from its values."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    MSE = "mse"


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. The defaults are those that the measurements in converters/README.md speak for.

    Attributes:
        range_rule: true extremes, or ranges that leave extreme values outside.
        percentile: for PERCENTILE: percent of the values below the upper end, and above the lower one; above 50, at most 100.
        mse_steps: for MSE: candidates for each end of a range.
        is_equalised: whether channels are equalised across layers.
        is_steady: whether ranges, means and weight scales have fewer significant bits than float32. The same network comes with
            weights that differ in their last bits, as exporters fold normalisations each in their own way; nearly all of these
            numbers then are the same. It costs at most 1/128 of the resolution.
        has_even_divisors: whether dense layers divide their sums by even numbers, so that TensorFlow Lite Micro, which rounds the
            quotient twice, and LiteRT's reference kernel, which rounds it once, give the same. It widens weight scales by a few
            thousandths.
        headroom: ranges of equalised activations are so many times what was seen: there every channel reaches the end of the
            range, so new samples leave it in any of them, where without equalisation only the largest channel does.
        correction_samples: the first so many samples give the means that biases are corrected by; 0: no correction.
        is_dense_per_tensor: whether FULLY_CONNECTED has one weight scale for all outputs, as runtimes of before 2024 want it.
        ranges: ranges that are used as they are, of all observation points: those that a quantization-aware training learned.
            Nothing is equalised or corrected then, because the weights were trained for what is.
        weight_bits: 4 or 8 by the name of the checkpoint tensor; layers that are not named keep what the template says.
        template: of an earlier conversion of the same network, whose bits, factors and means are taken over; with its `ranges`
            a conversion of new weights gives the bytes that a push gives.
        weight_budget_bytes: bytes that all weights of the encoder may take; layers get 4 bits until they do. None: all have 8.
    """

    range_rule: RangeRule = RangeRule.MIN_MAX
    percentile: float = 99.99
    mse_steps: int = 48
    is_equalised: bool = True
    is_steady: bool = True
    has_even_divisors: bool = True
    headroom: float = 1.1
    correction_samples: int = 32
    is_dense_per_tensor: bool = False
    ranges: Mapping[str, tuple[float, float]] | None = None
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    template: Graph | None = None
    weight_budget_bytes: int | None = None

    @classmethod
    def of(cls, package: Package) -> Recipe:
        """The recipe that repeats a package's quantization with other weights.

        Raises:
            ConfigError: the package was imported and does not know its template.
        """
        if package.host.template is None:
            raise ConfigError("this package was imported from a .tflite file: it keeps nothing that could be repeated")
        return cls(ranges=package.host.ranges, template=package.host.template)

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile {self.percentile}: expected a number above 50, at most 100")
        if not 1 <= self.headroom < np.inf:
            raise ConfigError(f"headroom {self.headroom}: expected a number from 1 up")
        if self.mse_steps < 2 or self.correction_samples < 0:
            raise ConfigError(f"{self.mse_steps} steps, {self.correction_samples} samples: expected at least 2 and 0")


def calibrate(template: Graph, tensors: Tensors, x: NDArray[np.float32], recipe: Recipe) -> tuple[Graph, Ranges]:
    """Observe a model on samples.

    Args:
        template: after all passes.
        tensors: the whole float state.
        x: samples float32 (N, ...), channels last.
        recipe: how it is to be quantized.

    Returns:
        The template to keep, and the range of every activation.

    Raises:
        ConversionError: the samples do not suit the template.
        ConfigError: given ranges are not those of the template's observation points.
    """
    if recipe.template is not None:
        template = _taken_over(template, recipe.template)
    template = with_weight_bits(template, recipe.weight_bits)
    if recipe.is_dense_per_tensor:
        dense = (replace(op, has_one_scale=True) if op.kind is OpKind.FULLY_CONNECTED else op for op in template.ops)
        template = replace(template, ops=tuple(dense))
    count = max(1, min(recipe.correction_samples, len(x)))
    graph = bind(template, tensors)
    seen = observe_channels(graph, x, count)
    if recipe.ranges is not None:
        return template, {name: channels.range for name, channels in seen.items()} | _given(template, recipe.ranges)
    if recipe.is_steady:
        template, graph = _with_steady_scales(template), _with_steady_scales(graph)
    if recipe.has_even_divisors:
        template, graph = _with_even_divisors(template), _with_even_divisors(graph)
    equalised: set[str] = set()
    if recipe.is_equalised:
        template, changed = equalise(template, graph, seen)
        equalised = {name for name in seen if changed[name] is not seen[name]}
        graph, seen = bind(template, tensors), changed
    ranges = _ranges(graph, x, seen, recipe)
    ranges |= {name: (ranges[name][0] * recipe.headroom, ranges[name][1] * recipe.headroom) for name in equalised}
    if recipe.is_steady:
        ranges = {name: _outwards(low, high) for name, (low, high) in ranges.items()}
        seen = {name: replace(channels, mean=_steady(channels.mean)) for name, channels in seen.items()}
    if recipe.correction_samples:
        template = _with_means(template, graph, ranges, x[:count], seen, recipe.is_steady)
    return template, ranges


def with_weight_bits(template: Graph, bits: Mapping[str, int]) -> Graph:
    """The template with 4 or 8 bits for the weights that are named.

    Raises:
        ConfigError: no weighted operator reads such a tensor, or it is another number.
    """
    weights = {op.source.weight for op in template.ops if op.source is not None}
    for name, count in bits.items():
        if name not in weights or count not in (4, 8):
            raise ConfigError(f"weight_bits: {name!r} with {count} bits; expected 4 or 8 for one of {', '.join(sorted(weights))}")
    ops = []
    for op in template.ops:
        if op.source is not None and op.source.weight in bits:
            op = replace(op, weight_bits=bits[op.source.weight])
        ops.append(op)
    return replace(template, ops=tuple(ops))


def _with_steady_scales(graph: Graph) -> Graph:
    """The graph with weight scales of _STEADY_BITS significant bits."""
    return replace(graph, ops=tuple(replace(op, scale_bits=_STEADY_BITS) if op.kind in WEIGHTED else op for op in graph.ops))


def _with_even_divisors(graph: Graph) -> Graph:
    """The graph with dense layers that divide their sums by even numbers."""
    return replace(
        graph, ops=tuple(replace(op, has_even_divisors=True) if op.kind is OpKind.FULLY_CONNECTED else op for op in graph.ops)
    )


def _outwards(low: float, high: float) -> tuple[float, float]:
    """A range whose ends have _STEADY_BITS significant bits and which holds the given one."""
    ends = np.array([low, high])
    return float(significant(ends, _STEADY_BITS, np.floor)[0]), float(significant(ends, _STEADY_BITS, np.ceil)[1])


def _steady(means: NDArray[np.float32]) -> NDArray[np.float32]:
    return significant(means, _STEADY_BITS).astype(np.float32)


def _taken_over(template: Graph, earlier: Graph) -> Graph:
    """The template with what an earlier one of the same network keeps of its calibration."""
    kept = {op.output: op for op in earlier.ops}
    ops = []
    for op in template.ops:
        before = kept.get(op.output)
        if before is None or before.kind is not op.kind or (before.source is None) is not (op.source is None):
            raise ConfigError(f"template: {op.name} ({op.kind}) is not in it; expected that of a conversion of the same network")
        if op.source is not None and before.source is not None:
            outputs, inputs = before.source.output_factors, before.source.input_factors
            op = replace(op, source=replace(op.source, output_factors=outputs, input_factors=inputs))
            op = replace(op, weight_bits=before.weight_bits, has_one_scale=before.has_one_scale, scale_bits=before.scale_bits)
            op = replace(op, has_even_divisors=before.has_even_divisors)
            op = replace(op, float_means=before.float_means, int8_means=before.int8_means)
        ops.append(op)
    return replace(template, ops=tuple(ops))


def _given(template: Graph, ranges: Mapping[str, tuple[float, float]]) -> Ranges:
    """The ranges of a training, if they are those of this model."""
    points = observation_points(template)
    missing = [name for name in points if name not in ranges]
    unknown = [name for name in ranges if name not in template.activations]
    for names, complaint in ((missing, "has no range"), (unknown, "is no activation of the model")):
        if names:
            raise ConfigError(f"ranges: {names[0]} {complaint}; expected those of {', '.join(points)}")
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}


def _ranges(graph: Graph, x: NDArray[np.float32], seen: Mapping[str, Channels], recipe: Recipe) -> Ranges:
    extremes = {name: channels.range for name, channels in seen.items()}
    if recipe.range_rule is RangeRule.MIN_MAX:
        return extremes
    points = observation_points(graph)
    clipped = dict(extremes)
    # Factors were rounded to float32 once more: the equalised graph may leave the extremes by its last bit, hence by no bin.
    for name, counts in histograms(graph, x, extremes).items():
        low, high = extremes[name]
        # The input's range is left whole: devices keep their samples in it.
        if name not in points or name == graph.input or not low < high:
            continue
        if recipe.range_rule is RangeRule.PERCENTILE:
            clipped[name] = percentile_range(counts, low, high, recipe.percentile)
        else:
            clipped[name] = least_squares_range(counts, low, high, recipe.mse_steps)
    return clipped


def _with_means(
    template: Graph, graph: Graph, ranges: Ranges, x: NDArray[np.float32], seen: Mapping[str, Channels], is_steady: bool
) -> Graph:
    """The template with the means of every weighted operator's input, in the float graph and in the int8 graph.

    Layer after layer: the int8 means are those behind the corrected biases of all layers before.
    """
    int8 = quantize(graph, ranges)
    values: dict[str, NDArray[np.int8]] = {int8.input: quantize_input(int8, x)}
    sources = {op.output: op for op in graph.ops}
    kept = {op.output: op for op in template.ops}
    for op in int8.ops:
        if op.kind in WEIGHTED:
            name = op.inputs[0]
            int8_means = _channel_means(values[name], int8.activations[name])
            int8_means = _steady(int8_means) if is_steady else int8_means
            means = _features(seen[name].mean, op), _features(int8_means, op)
            kept[op.output] = replace(kept[op.output], float_means=means[0], int8_means=means[1])
            floating = replace(sources[op.output], float_means=means[0], int8_means=means[1])
            source, target = (fixed_point.quantization_of(int8.activations[end]) for end in (name, op.output))
            op = quantize_weights(floating, int8.activations[name].shape, source, target)
        values[op.output] = run_int8_op(int8, op, values)
    return replace(template, ops=tuple(kept[op.output] for op in template.ops))


def _channel_means(values: NDArray[np.int8], activation: Activations) -> NDArray[np.float32]:
    flat = dequantize_values(activation, values).reshape(-1, values.shape[-1])
    return np.asarray(flat.mean(axis=0, dtype=np.float64), np.float32)


def _features(means: NDArray[np.float32], op: Op) -> NDArray[np.float32]:
    """Means by channel as FULLY_CONNECTED reads them, which may take an image as one vector."""
    if op.kind is not OpKind.FULLY_CONNECTED:
        return means
    return np.tile(means, np.asarray(op.weights).shape[1] // len(means))
