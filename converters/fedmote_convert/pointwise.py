# SPDX-License-Identifier: Apache-2.0
"""Operators element by element: activations, sums and products, softmax, and those that do nothing on a device.

What TensorFlow Lite has no operator for is written as a chain of those that it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmote.package.geometry import repeats_whole
from fedmote.package.graph import Activation, Op, OpKind, WeightRef
from fedmote_convert.arguments import axis_of
from fedmote_convert.layout import Layout
from fedmote_convert.sketch import Call, Constant, Handler, Parameter, Sketch, Value

# An operator of one activation in a chain: its kind and fields.
_Step = tuple[OpKind, dict[str, Any]]


def _relu(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self", "input"), [_clamped(Activation.RELU)])


def _relu6(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self", "input"), [_clamped(Activation.RELU6)])


def _clamped(activation: Activation) -> _Step:
    return (OpKind.RELU, {"activation": activation})


def _number(kind: OpKind, value: float, activation: Activation = Activation.NONE) -> _Step:
    """A sum with, or a product by, a number."""
    return (kind, {"constant": np.array([value], np.float32), "activation": activation})


def _chain(call: Call, sketch: Sketch, source: str, steps: Sequence[_Step]) -> None:
    """Operators one behind the other, the last of which makes the call's result; none at all leaves the source as it is."""
    for number, (kind, fields) in enumerate(steps[:-1]):
        source = sketch.step(call, f"step{number}", kind, source, **fields)
    kind, fields = steps[-1] if steps else (OpKind.RESHAPE, {})
    sketch.append_like(call, kind, source, **fields)


def _clamp(call: Call, sketch: Sketch) -> None:
    """Clamps that no activation has are the clamp to [0, 6] or [0, inf) between sums and products with numbers."""
    low, high = _limit(call, "min"), _limit(call, "max")
    if low is not None and high is not None and not low < high:
        raise call.refusal(f"a clamp to [{low}, {high}]", "use an interval that is not empty")
    source = call.activation("self", "input")
    add, mul = OpKind.ADD, OpKind.MUL
    fused: dict[tuple[float | None, float | None], Activation] = {
        (0, None): Activation.RELU,
        (0, 6): Activation.RELU6,
        (-1, 1): Activation.RELU_N1_TO_1,
    }
    steps: list[_Step]
    if (low, high) in fused:
        steps = [_clamped(fused[low, high])]
    elif high is None and low is not None:
        steps = [_number(add, -low, Activation.RELU), _number(add, low)]
    elif low is None and high is not None:
        steps = [_number(mul, -1), _number(add, high, Activation.RELU), _number(mul, -1), _number(add, high)]
    elif low is not None and high is not None:
        scale = (high - low) / 6
        steps = [_number(add, -low)] * (low != 0) + [_number(mul, 1 / scale, Activation.RELU6), _number(mul, scale)]
        steps += [_number(add, low)] * (low != 0)
    else:
        steps = []
    _chain(call, sketch, source, steps)


def _limit(call: Call, name: str) -> float | None:
    """One side of a clamp; None where there is none."""
    value = call.get(f"{name}_val", call.get(name))
    if value is None or (isinstance(value, float) and math.isinf(value)):
        return None
    if not isinstance(value, int | float):
        raise call.refusal(f"a clamp whose {name} is no number", "clamp to numbers")
    return value


def _hard_sigmoid(call: Call, sketch: Sketch) -> None:
    """Written min(max(x + 3, 0), 6) / 6, as TensorFlow Lite has no operator for it."""
    steps = [_number(OpKind.ADD, 3, Activation.RELU6), _number(OpKind.MUL, 1 / 6)]
    _chain(call, sketch, call.activation("self", "input"), steps)


def _leaky_relu(call: Call, sketch: Sketch) -> None:
    alpha = float(np.float32(call["negative_slope"]))
    _chain(call, sketch, call.activation("self"), [(OpKind.LEAKY_RELU, {"alpha": alpha})])


def _function(kind: OpKind) -> Handler:
    """A function of one element."""

    def translate_function(call: Call, sketch: Sketch) -> None:
        _chain(call, sketch, call.activation("self", "input"), [(kind, {})])

    return translate_function


def _silu(call: Call, sketch: Sketch) -> None:
    """Written x * sigmoid(x), as TensorFlow Lite has no operator for it."""
    source = call.activation("self")
    gate = sketch.step(call, "gate", OpKind.LOGISTIC, source)
    sketch.append_like(call, OpKind.MUL, source, gate)


def _softmax(call: Call, sketch: Sketch) -> None:
    source = call.activation("self", "input")
    rank = len(sketch.torch_shapes[source])
    axis = axis_of(call, int(call["dim"]), rank)
    if rank > 2:
        source, order = sketch.in_wholes(call.node, source)
        source = sketch.arranged(call.node, source, (*(other for other in order if other != axis), axis))
    sketch.append_like(call, OpKind.SOFTMAX, source)


# --- sums and products -----------------------------------------------------------------------------------------------


def _add(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["self"], call["other"], float(call.get("alpha", 1)))


def _sub(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["self"], call["other"], -float(call.get("alpha", 1)))


def _rsub(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["other"], call["self"], -float(call.get("alpha", 1)))


def _linear_combination(call: Call, sketch: Sketch, first: Any, second: Any, factor: float) -> None:  # noqa: ANN401
    """Add two operands, the second of them times a factor, of which one may be a number, a parameter or a constant."""
    if isinstance(second, Value):
        name = second.name
        if factor != 1:
            name = sketch.step(call, "scaled", OpKind.MUL, name, constant=np.array([factor], np.float32))
        if isinstance(first, Value):
            _binary(call, sketch, OpKind.ADD, first.name, name)
        else:
            _with_constant(call, sketch, OpKind.ADD, name, first)
    elif not isinstance(first, Value):
        raise call.refusal("it computes on parameters or constants alone", "compute them once, before the conversion")
    elif isinstance(second, int | float):
        _with_constant(call, sketch, OpKind.ADD, first.name, factor * second)
    elif isinstance(second, Constant):
        _with_constant(call, sketch, OpKind.ADD, first.name, Constant(np.float32(factor) * second.values))
    elif factor == 1:
        _with_constant(call, sketch, OpKind.ADD, first.name, second)
    else:
        raise call.refusal("a difference to a parameter, or its multiple", "add the parameter, learned with the other sign")


def _mul(call: Call, sketch: Sketch) -> None:
    first, second = call["self"], call["other"]
    if isinstance(first, Value) and isinstance(second, Value):
        _binary(call, sketch, OpKind.MUL, first.name, second.name)
    elif isinstance(first, Value):
        _with_constant(call, sketch, OpKind.MUL, first.name, second)
    else:
        _with_constant(call, sketch, OpKind.MUL, call.activation("other"), first)


def _div(call: Call, sketch: Sketch) -> None:
    first, second = call["self"], call["other"]
    is_constant = isinstance(second, Constant) and bool(second.values.all())
    is_number = isinstance(second, int | float) and second != 0
    if call.get("rounding_mode") is not None or not isinstance(first, Value) or not (is_constant or is_number):
        raise call.refusal("a division by anything but a number", "multiply by the inverse")
    inverse = Constant(np.reciprocal(second.values)) if isinstance(second, Constant) else 1 / second
    _with_constant(call, sketch, OpKind.MUL, first.name, inverse)


def _neg(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self"), [_number(OpKind.MUL, -1)])


def _binary(call: Call, sketch: Sketch, kind: OpKind, first: str, second: str) -> None:
    """A sum or product of two activations, one of which may repeat along axes."""
    whole, other = sorted((first, second), key=lambda name: sketch.torch_shapes[name] != call.shape)
    if sketch.torch_shapes[whole] != call.shape:
        text = f"{sketch.torch_shapes[first]} and {sketch.torch_shapes[second]}"
        raise call.refusal(
            f"{_noun(kind)} of {text} that do not match element by element",
            "use activations of one shape, or of which one repeats",
        )
    is_alike = sketch.torch_shapes[other] == call.shape and sketch.layouts[other].merged() == sketch.layouts[whole].merged()
    if is_alike and sketch.activations[other].shape == sketch.activations[whole].shape:
        sketch.append_like(call, kind, whole, other)
        return
    other = sketch.with_rank(call, other, len(call.shape))
    lies = sketch.layouts[whole].order or sketch.layouts[other].order
    whole, order = sketch.in_wholes(call.node, whole) if lies is None else (sketch.arranged(call.node, whole, lies), lies)
    other = sketch.arranged(call.node, other, order)
    shapes = [sketch.activations[name].shape for name in (other, whole)]
    if not repeats_whole(shapes[0], shapes[1]):
        name = f"{call.output}/repeated"
        sketch.declare(name, call.shape, call.node, Layout.of(call.shape[1:], order), shapes[1])
        sketch.ops.append(Op(OpKind.BROADCAST_TO, call.node, (other,), name))
        other = name
    sketch.append_like(call, kind, whole, other)


def _with_constant(call: Call, sketch: Sketch, kind: OpKind, source: str, operand: Any) -> None:  # noqa: ANN401
    """A sum or product with a number, with values of no checkpoint, or with a parameter that each push brings anew."""
    if isinstance(operand, int | float):
        _chain(call, sketch, source, [_number(kind, operand)])
        return
    if not isinstance(operand, Parameter | Constant):
        raise call.refusal(f"{_noun(kind)} of something that is no tensor", "use activations, parameters or numbers")
    axes = (1,) * (len(call.shape) - len(operand.shape)) + tuple(operand.shape)
    if sketch.torch_shapes[source] != call.shape or axes[0] != 1:
        text = f"{sketch.torch_shapes[source]} and {tuple(operand.shape)}"
        raise call.refusal(f"{_noun(kind)} of {text} that repeats the activation", "let the constant repeat, not the activation")
    source, order = sketch.in_wholes(call.node, source)
    if isinstance(operand, Parameter):
        reference = WeightRef(operand.name, None, layout="constant", axes=axes[1:], order=order)
        sketch.append_like(call, kind, source, source=reference)
    else:
        sketch.append_like(call, kind, source, constant=operand.values.reshape(axes[1:]).transpose(order))


def _noun(kind: OpKind) -> str:
    return "an addition" if kind is OpKind.ADD else "a multiplication"


def _identity(call: Call, sketch: Sketch) -> None:
    if call.get("train"):
        raise call.refusal("a dropout in training mode", "build() must return the module after .eval()")
    _chain(call, sketch, call.activation("self", "input"), [])


# aten operator without its overload -> translation.
POINTWISE: dict[str, Handler] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "leaky_relu": _leaky_relu,
    "hardswish": _function(OpKind.HARD_SWISH),
    "hardsigmoid": _hard_sigmoid,
    "sigmoid": _function(OpKind.LOGISTIC),
    "tanh": _function(OpKind.TANH),
    "silu": _silu,
    "softmax": _softmax,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "dropout": _identity,
    "feature_dropout": _identity,
    "contiguous": _identity,
    "clone": _identity,
    "to": _identity,
    "detach": _identity,
    "alias": _identity,
}
