# SPDX-License-Identifier: Apache-2.0
"""What every front-end builds on: calls of a source format in, a graph under construction, and the capture that it ends as.

Sources keep channels first, the graph keeps them last: (1, C, H, W) becomes (1, H, W, C), (1, C, W) becomes (1, 1, W, C),
(1, F) stays. The sketch keeps both shapes of every activation, so that a translation reads arguments in the source's terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import UnsupportedOpError
from fedmote.package.graph import Activations, Graph, Op, OpKind, Tensors

Shape = tuple[int, ...]
# (channels, height, width) whose channels-last order the elements of an activation have in memory.
Order = tuple[int, int, int]


@dataclass(frozen=True)
class Value:
    """An activation as an argument of a call."""

    name: str


@dataclass(frozen=True)
class Parameter:
    """A tensor of the checkpoint as an argument of a call: its state_dict name and torch shape."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Call:
    """One operator call of the exported program.

    Attributes:
        node: path of its module (and name of the call, where the module makes several), for messages.
        target: aten operator with overload, e.g. "aten.conv2d.default".
        arguments: by the names of torch's schema, defaults filled in.
        shape: torch shape of the result.
        output: unique name of the result.
    """

    node: str
    target: str
    arguments: Mapping[str, Any]
    shape: Shape
    output: str

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # torch schemas mix numbers, lists, strings and tensors
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an argument, or the default where this overload has no such argument."""
        return self.arguments.get(name, default)

    def activation(self, *names: str) -> str:
        """Name of the activation given as the first of these arguments that the operator has."""
        for name in names:
            if isinstance(self.get(name), Value):
                return str(self[name].name)
        raise self.refusal("it computes on parameters or constants alone", "compute them once, before the conversion")

    def parameter(self, name: str) -> Parameter:
        """The checkpoint tensor given as this argument."""
        value = self.get(name)
        if not isinstance(value, Parameter):
            raise self.refusal(f"its {name} is no parameter of the module", "give it learned parameters of its own")
        return value

    def refusal(self, reason: str, hint: str) -> UnsupportedOpError:
        """The error that refuses this call."""
        return UnsupportedOpError(self.node, reason, hint)


@dataclass
class Sketch:
    """The graph while calls are translated."""

    activations: dict[str, Activations] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    torch_shapes: dict[str, Shape] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)

    def declare(self, name: str, torch_shape: Shape, node: str, order: Order | None = None) -> None:
        """Add an activation; `order` is needed where (1, F) features are a flattened image."""
        self.activations[name] = Activations(name, channels_last(torch_shape, node))
        self.torch_shapes[name] = torch_shape
        self.orders[name] = plain_order(order or order_of(torch_shape))

    def append(self, call: Call, kind: OpKind, *inputs: str, order: Order | None = None, **fields: Any) -> None:  # noqa: ANN401
        """Add the operator that makes the call's result."""
        self.declare(call.output, call.shape, call.node, order)
        self.ops.append(Op(kind, call.node, inputs, call.output, **fields))

    def pad(self, call: Call, source: str, pads: tuple[int, int, int, int]) -> str:
        """Add explicit zero padding in front of the call's operator, if there is any; return what to read instead."""
        if not any(pads):
            return source
        top, bottom, left, right = pads
        name = f"{call.output}/pad"
        _, height, width, channels = self.activations[source].shape
        shape = (1, channels, height + top + bottom, width + left + right)
        self.declare(name, shape, call.node)
        self.ops.append(Op(OpKind.PAD, call.node, (source,), name, pads=pads))
        return name


Handler = Callable[[Call, Sketch], None]


def channels_last(torch_shape: Shape, node: str) -> Shape:
    """Shape of an activation in the graph.

    Raises:
        UnsupportedOpError: it is neither (1, C, H, W) nor (1, C, W) nor (1, F).
    """
    if torch_shape[:1] != (1,) or len(torch_shape) not in (2, 3, 4):
        raise UnsupportedOpError(
            node, f"a result of shape {torch_shape}", "activations are (1, C, H, W), (1, C, W) or (1, F) with the batch in front"
        )
    if len(torch_shape) == 2:
        return torch_shape
    channels, height, width = order_of(torch_shape)
    return (1, height, width, channels)


def order_of(torch_shape: Shape) -> Order:
    """(channels, height, width) of a torch shape; features are channels of one pixel."""
    sizes = torch_shape[1:]
    if len(sizes) == 3:
        return (sizes[0], sizes[1], sizes[2])
    return (sizes[0], 1, sizes[1]) if len(sizes) == 2 else (sizes[0], 1, 1)


def plain_order(order: Order) -> Order:
    """The order with one channel or one pixel is that of plain features."""
    channels, height, width = order
    return (channels * height * width, 1, 1) if 1 in (channels, height * width) else order


@dataclass(frozen=True)
class Capture:
    """A captured network.

    Attributes:
        graph: the whole network, head included, as its front-end leaves it: before any pass.
        modules: per activation, the paths of the modules inside which it was made, outermost first.
        tensors: its floating-point state by names of its own, float32.
        sample_shape: of one sample as the source reads it, without the batch.
        reference: computes the logits (N, C) of samples float32 (N, *sample_shape) in the source's own arithmetic.
    """

    graph: Graph
    modules: dict[str, tuple[str, ...]]
    tensors: Tensors
    sample_shape: Shape
    reference: Callable[[NDArray[np.float32]], NDArray[np.float32]]
