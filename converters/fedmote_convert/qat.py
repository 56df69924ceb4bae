# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: a module trained on what its int8 form will compute.

`FakeQuantized` runs the template of a module, the very graph that a conversion quantizes, in torch: batch normalisation folded
with its running statistics, weights rounded to 8 or 4 bits per channel, activations to int8 where the int8 graph rounds them.
Rounding has no useful gradient, so it is passed through as if it did nothing (straight-through estimator: Bengio et al.,
"Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432; Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). The ends of the ranges are parameters too: a value
inside moves them by its rounding error, a clipped one by all of its gradient (Esser et al., "Learned Step Size Quantization",
ICLR 2020).

The parameters are the module's own: nothing is wrapped, and its `state_dict` stays what it was. So a training is

    fake = FakeQuantized(module, x, weight_bits=4)
    optimizer = torch.optim.Adam(fake.parameters(), 1e-3)
    ...                                         # train fake as one would train module
    fake.save(Path("ranges.json"))              # for `fedmote convert --ranges`; or Recipe(ranges=fake.ranges(), ...)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedmote.errors import UnsupportedOpError
from fedmote.package.execute import observe
from fedmote.package.fixed_point import activation_range, mean_requantization, quantize_multiplier, requantize
from fedmote.package.fold import bind
from fedmote.package.geometry import window_of
from fedmote.package.graph import WEIGHTED, Activation, Graph, Op, OpKind, Quantization, Ranges
from fedmote.package.head import channels_last_columns
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote.package.quantize import activation_quantization, observation_points
from fedmote.package.tables import fixed_quantization
from fedmote_convert.calibration import with_weight_bits
from fedmote_convert.capture import capture
from fedmote_convert.cut import LAST, cut_at
from fedmote_convert.passes import run_passes

_LEVELS = 255
# Layouts of weights (fold.bind) whose torch order the layers here take.
_LAYOUTS = ("conv1d", "conv2d", "depthwise1d", "depthwise2d", "linear", "linear_chw", "pixel_linear")


class FakeQuantized(nn.Module):
    """A module as its int8 encoder and float head will compute it, for training.

    Args:
        module: in evaluation mode, float32; its parameters are trained.
        x: calibration samples float32 (N, ...) as the module reads them: ranges begin at their extremes.
        cut: as in `convert`.
        weight_bits: of all weights of the encoder, or by the name of the checkpoint tensor (8 where it is not named).

    Raises:
        UnsupportedOpError: the module cannot be converted, or has an operator that cannot be trained here.
    """

    def __init__(
        self, module: nn.Module, x: NDArray[np.float32], *, cut: str = LAST, weight_bits: int | Mapping[str, int] = 8
    ) -> None:
        super().__init__()
        captured = capture(module, x.shape[1:])
        split = cut_at(captured, cut)
        template = run_passes(split.encoder)
        names = [op.source.weight for op in template.ops if op.source is not None]
        self.weight_bits = dict.fromkeys(names, weight_bits) if isinstance(weight_bits, int) else dict(weight_bits)
        self.module = module
        self._template = with_weight_bits(template, self.weight_bits)
        self._head = split.head
        _check(self._template)
        layout = captured.input_layout or layout_of(x.shape[1:])
        self._is_channels_first = layout == layout_of(x.shape[1:])
        seen = observe(bind(template, captured.tensors), arrange(x, layout, graph_shape(x.shape[1:], layout)))
        self._points = observation_points(template)
        limits = torch.tensor([seen[name] for name in self._points])
        self.low = nn.Parameter(limits[:, 0].clamp(max=0))
        self.high = nn.Parameter(limits[:, 1].clamp(min=0))
        # Devices keep their samples in the input's quantization: it is not trained.
        self._input_range = seen[template.input]

    def ranges(self) -> Ranges:
        """The range of every observation point, as it is now."""
        low, high = self.low.detach().clamp(max=0).tolist(), self.high.detach().clamp(min=0).tolist()
        learned = dict(zip(self._points, zip(low, high, strict=True), strict=True))
        return learned | {self._template.input: self._input_range}

    def save(self, path: Path) -> None:
        """Write ranges and bits for `fedmote convert --ranges`."""
        content = {"ranges": {name: list(limits) for name, limits in self.ranges().items()}, "weight_bits": self.weight_bits}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of samples as the module reads them."""
        state = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        values = self.features(x, state)
        for layer in self._head:
            weight = state[layer.weight]
            if layer.chw is not None:
                weight = weight[:, torch.from_numpy(channels_last_columns(layer.chw))]
            values = F.linear(values, weight, state[layer.bias])
            values = torch.relu(values) if layer.activation is Activation.RELU else values
        return values

    def features(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What the int8 encoder makes of samples (N, ...), as real numbers (N, D)."""
        graph = self._template
        limits = {name: (self.low[number], self.high[number]) for number, name in enumerate(self._points)}
        limits[graph.input] = (torch.tensor(self._input_range[0]), torch.tensor(self._input_range[1]))
        channels_last = x.movedim(1, -1) if self._is_channels_first else x
        arranged = channels_last.reshape(len(x), *graph.activations[graph.input].shape[1:])
        values = {graph.input: fake_quantize(arranged, *limits[graph.input])}
        known = {name: activation_quantization(name, *(float(end.detach()) for end in ends)) for name, ends in limits.items()}
        for op in graph.ops:
            source = known[op.inputs[0]]
            sums, steps = _run(graph, op, values, state, source)
            out = _clamp(sums, op.activation)
            fixed = fixed_quantization(op.kind)
            if op.output in limits:
                out = fake_quantize(out, *limits[op.output])
                if steps is not None:
                    out = _straight_through(
                        out, _requantized(op, sums, steps, source, known[op.output], values[op.inputs[0]].shape)
                    )
            else:
                # An average makes new values, in the old scale; they stay inside the old range.
                known[op.output] = source if fixed is None else fixed
                scale, zero_point = float(known[op.output].scale[0]), int(known[op.output].zero_point[0])
                out = _round(out / scale).clamp(-128 - zero_point, 127 - zero_point) * scale
            values[op.output] = out
        return values[graph.output].reshape(len(x), -1)


def _requantized(
    op: Op, sums: Tensor, steps: NDArray[np.float64], source: Quantization, target: Quantization, shape: Sequence[int]
) -> Tensor:
    """Outputs of a weighted operator or a mean, rounded as integers are: twice.

    The first rounding leaves an accumulator's own resolution. With weights of 4 bits that is a few hundredths of an output's
    step, so a training that rounds once would decide otherwise now and then.

    Args:
        op: the operator.
        sums: its real outputs before the activation, multiples of `steps`.
        steps: what one step of the accumulator stands for, by channel or alone.
        source: quantization of its input.
        target: quantization of its output.
        shape: of its input with a batch.
    """
    accumulator = np.rint(sums.detach().double().numpy() / steps).astype(np.int64)
    if op.kind is OpKind.MEAN:
        integers = requantize(accumulator, *mean_requantization(source, target, shape[1] * shape[2]))
    else:
        integers = requantize(accumulator, *quantize_multiplier(steps / np.float64(target.scale[0])))
    integers += int(target.zero_point[0])
    clamped = np.clip(integers, *activation_range(op.activation, target)) - int(target.zero_point[0])
    return torch.from_numpy(clamped.astype(np.float32) * target.scale[0])


class _StraightThrough(torch.autograd.Function):
    """Rounded values in place of exact ones, with the gradient of the exact ones."""

    @staticmethod
    def forward(context: object, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    values: Tensor = _StraightThrough.apply(exact, rounded.detach())  # type: ignore[no-untyped-call]  # torch's own
    return values


def _round(values: Tensor) -> Tensor:
    """Half away from zero."""
    return _straight_through(values, torch.trunc(values + torch.copysign(torch.full_like(values, 0.5), values)))


def fake_quantize(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values as int8 with the range [low, high] holds them, which is widened to hold zero exactly.

    Gradients reach the values that are not clipped, and of those that are the end that clips them.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high.double() - low.double()) / _LEVELS).float().clamp(min=torch.finfo(torch.float32).tiny)
    exact = -128 - low.double() / scale.double()
    zero_point = _straight_through(exact, torch.floor(exact + 0.5).clamp(-128, 127)).float()
    steps = torch.minimum(torch.maximum(_round(values / scale), -128 - zero_point), 127 - zero_point)
    return steps * scale


def fake_quantize_weights(weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Weights (O, ...) float64 as integers of `bits` bits with a scale per output channel hold them, float32; and scales (O,)."""
    limit = 2 ** (bits - 1) - 1
    largest = weights.detach().abs().reshape(len(weights), -1).amax(dim=1)
    scales = (largest / limit).float().clamp(min=torch.finfo(torch.float32).tiny).double()
    by_channel = scales.reshape(-1, *[1] * (weights.ndim - 1))
    return (_round(weights / by_channel).clamp(-limit, limit) * by_channel).float(), scales


def _check(template: Graph) -> None:
    """Refuse what the int8 graph would round in places of its own."""
    for op in template.ops:
        if op.kind not in _RUNNERS and op.kind not in WEIGHTED:
            reason = f"{op.kind} in a quantization-aware training"
            raise UnsupportedOpError(op.name, reason, f"train what is made of {', '.join((*WEIGHTED, *_RUNNERS))}")
        if op.pad_value is not None or (op.kind is OpKind.AVERAGE_POOL_2D and op.padding != "VALID"):
            raise UnsupportedOpError(op.name, "such padding in a quantization-aware training", "pad convolutions, with zeros")
        source = op.source
        if source is None:
            continue
        is_plain = not source.input_norm and all(norm.weight is not None for norm in source.batch_norm)
        if source.layout not in _LAYOUTS or not is_plain:
            hint = "give every layer weights of its own, and batch normalisations parameters and a place right behind a layer"
            raise UnsupportedOpError(op.name, "weights of this kind in a quantization-aware training", hint)


def _weights(op: Op, state: Mapping[str, Tensor], input_quantization: Quantization) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Folded weights in torch's order and the bias, both rounded, float64 until then as in `fold.bind`; steps of the sums."""
    source = op.source
    assert source is not None  # templates of torch modules name the weights of all operators
    weight = state[source.weight].double()
    bias = weight.new_zeros(len(weight)) if source.bias is None else state[source.bias].double()
    for norm in source.batch_norm:
        assert norm.weight is not None and norm.bias is not None  # _check
        factor = state[norm.weight].double() / torch.sqrt(state[norm.running_var].double() + norm.eps)
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        bias = (bias - state[norm.running_mean].double()) * factor + state[norm.bias].double()
    if source.chw is not None:
        weight = weight[:, torch.from_numpy(channels_last_columns(source.chw))]
    rounded, scales = fake_quantize_weights(weight, op.weight_bits)
    steps = float(input_quantization.scale[0]) * scales
    return rounded, (_round(bias / steps) * steps).float(), steps.numpy()


def _run(
    graph: Graph, op: Op, values: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Quantization
) -> tuple[Tensor, NDArray[np.float64] | None]:
    """An operator before its activation, in float32, and the step of its sums where int8 kernels add into an accumulator."""
    x = values[op.inputs[0]]
    if op.kind in WEIGHTED:
        weight, bias, steps = _weights(op, state, source)
        if op.kind is not OpKind.FULLY_CONNECTED:
            return _convolve(op, x, weight, bias), steps
        shape = (len(x), *graph.activations[op.output].shape[1:])
        return F.linear(x.reshape(-1, weight.shape[1]), weight, bias).reshape(shape), steps
    step = float(source.scale[0]) / (x.shape[1] * x.shape[2]) if op.kind is OpKind.MEAN else None
    return _RUNNERS[op.kind](graph, op, values), None if step is None else np.array([step])


def _convolve(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.ndim < 4:  # a sequence has height 1; a dense layer over pixels reads one at a time
        weight = weight.unsqueeze(2) if weight.ndim == 3 else weight[:, :, None, None]
    window = window_of(op, (1, *x.shape[1:]))
    padded = F.pad(x.movedim(-1, 1), (window.pad_left, window.pad_right, window.pad_top, window.pad_bottom))
    groups = x.shape[-1] // weight.shape[1]
    return F.conv2d(padded, weight, bias, op.stride, 0, op.dilation, groups).movedim(1, -1)


def _binary(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    if op.constant is None:
        second = values[op.inputs[1]]
    else:
        # The int8 graph rounds the constant as well.
        constant = torch.from_numpy(np.asarray(op.constant, np.float32))
        second = fake_quantize(constant, constant.min(), constant.max())
    return values[op.inputs[0]] + second if op.kind is OpKind.ADD else values[op.inputs[0]] * second


def _pool(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    source = values[op.inputs[0]]
    x = source.movedim(-1, 1)
    if op.kind is OpKind.MAX_POOL_2D:
        window = window_of(op, (1, *source.shape[1:]))
        pads = (window.pad_left, window.pad_right, window.pad_top, window.pad_bottom)
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), op.kernel, op.stride).movedim(1, -1)
    return F.avg_pool2d(x, op.kernel, op.stride).movedim(1, -1)


def _pad(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    top, bottom, left, right = op.pads
    return F.pad(values[op.inputs[0]], (0, 0, left, right, top, bottom))


def _mean(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    shape = graph.activations[op.output].shape[1:]
    return values[op.inputs[0]].mean(dim=(1, 2)).reshape(-1, *shape)


def _reshape(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    return values[op.inputs[0]].reshape(-1, *graph.activations[op.output].shape[1:])


def _elementwise(graph: Graph, op: Op, values: Mapping[str, Tensor]) -> Tensor:
    x = values[op.inputs[0]]
    match op.kind:
        case OpKind.LEAKY_RELU:
            return F.leaky_relu(x, op.alpha)
        case OpKind.HARD_SWISH:
            return F.hardswish(x)
        case OpKind.LOGISTIC:
            return torch.sigmoid(x)
        case OpKind.TANH:
            return torch.tanh(x)
        case OpKind.SOFTMAX:
            return torch.softmax(x * op.beta, dim=-1)
    return torch.relu(x) if op.activation is Activation.NONE else x


def _clamp(values: Tensor, activation: Activation) -> Tensor:
    limits = {Activation.RELU: (0.0, None), Activation.RELU6: (0.0, 6.0), Activation.RELU_N1_TO_1: (-1.0, 1.0)}
    if activation is Activation.NONE:
        return values
    low, high = limits[activation]
    return values.clamp(low, high)


_RUNNERS = {
    **dict.fromkeys((OpKind.ADD, OpKind.MUL), _binary),
    **dict.fromkeys((OpKind.MAX_POOL_2D, OpKind.AVERAGE_POOL_2D), _pool),
    OpKind.PAD: _pad,
    OpKind.MEAN: _mean,
    OpKind.RESHAPE: _reshape,
    **dict.fromkeys(
        (OpKind.RELU, OpKind.LEAKY_RELU, OpKind.HARD_SWISH, OpKind.LOGISTIC, OpKind.TANH, OpKind.SOFTMAX), _elementwise
    ),
}
