# SPDX-License-Identifier: Apache-2.0
"""What every front-end builds on: calls of a source format in, a graph under construction, and the capture that it ends as.

Sources keep channels first, the graph keeps them last: (1, C, H, W) becomes (1, H, W, C), (1, C, W) becomes (1, 1, W, C),
(1, F) stays. Views move nothing: of every activation the sketch keeps the source's shape and its `Layout` in memory, so that a
translation reads arguments in the source's terms and asks for the order of axes that its operator needs. Where memory has
another one, and only there, a TRANSPOSE stands. Whether samples are kept channels first or last is tried out: `draw` takes what
moves fewer elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import UnsupportedOpError
from fedmote.package.graph import Activations, Graph, Op, OpKind, Tensors
from fedmote.package.inputs import layouts_of
from fedmote_convert.layout import Layout, Shape

# Loops that a device's copy has (protocol/SPEC.md, strided-copy): digits that a TRANSPOSE can move.
_LOOPS = 4


@dataclass(frozen=True)
class Value:
    """An activation as an argument of a call."""

    name: str


@dataclass(frozen=True)
class Parameter:
    """A tensor of the checkpoint as an argument of a call.

    Attributes:
        name: in the state_dict.
        shape: as the call sees it.
        is_view: whether it was reshaped on the way: its elements are those of the tensor, its shape is not.
    """

    name: str
    shape: Shape
    is_view: bool = False


@dataclass(frozen=True)
class Constant:
    """Values as an argument of a call that are in no checkpoint, float32."""

    values: NDArray[np.float32]

    @property
    def shape(self) -> Shape:
        """Of the values."""
        return self.values.shape


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
        if not isinstance(value, Parameter) or value.is_view:
            raise self.refusal(
                f"its {name} is no parameter of the module, but computed",
                "give it a learned parameter of its own; for weight_norm and other parametrizations that is "
                "torch.nn.utils.parametrize.remove_parametrizations(layer, name)",
            )
        return value

    def refusal(self, reason: str, hint: str) -> UnsupportedOpError:
        """The error that refuses this call."""
        return UnsupportedOpError(self.node, reason, hint)


@dataclass
class Sketch:
    """The graph while calls are translated.

    Attributes:
        activations, ops: of the graph.
        torch_shapes: of every activation in the source, batch included.
        layouts: where its elements lie.
        arrangements: activations that were made to have axes in another order: by name and order.
    """

    activations: dict[str, Activations] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    torch_shapes: dict[str, Shape] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    arrangements: dict[tuple[str, Sequence[int]], str] = field(default_factory=dict)

    def declare(self, name: str, torch_shape: Shape, node: str, layout: Layout | None = None, shape: Shape | None = None) -> None:
        """Add an activation; without a layout its channels are last, without a shape the graph's follows from the layout.

        Raises:
            UnsupportedOpError: it has no batch of 1 in front, or no elements.
        """
        if torch_shape[:1] != (1,) or len(torch_shape) < 2 or not math.prod(torch_shape):
            raise UnsupportedOpError(
                node,
                f"a result of shape {torch_shape}",
                "activations are (1, C, H, W), (1, C, W) or (1, F) with the batch in front",
            )
        if layout is None:
            layout = Layout.channels_last(torch_shape[1:])
            shape = shape or memory_shape(layout, (*range(1, len(torch_shape) - 1), 0))
        self.activations[name] = Activations(name, shape or memory_shape(layout))
        self.torch_shapes[name] = torch_shape
        self.layouts[name] = layout

    def append(
        self,
        call: Call,
        kind: OpKind,
        *inputs: str,
        layout: Layout | None = None,
        shape: Shape | None = None,
        **fields: Any,  # noqa: ANN401  # of Op
    ) -> None:
        """Add the operator that makes the call's result."""
        self.declare(call.output, call.shape, call.node, layout, shape)
        self.ops.append(Op(kind, call.node, inputs, call.output, **fields))

    def append_like(self, call: Call, kind: OpKind, source: str, /, *others: str, **fields: Any) -> None:  # noqa: ANN401
        """Add an operator whose result lies in memory as its source does, element by element, and has the call's shape."""
        layout, shape = self.layouts[source], self.activations[source].shape
        self.append(call, kind, source, *others, layout=layout, shape=shape, **fields)

    def step(self, call: Call, suffix: str, kind: OpKind, source: str, /, *others: str, **fields: Any) -> str:  # noqa: ANN401
        """Add an operator on the way to the call's result that keeps its source's shape and layout; return what it makes."""
        name = f"{call.output}/{suffix}"
        layout, shape = self.layouts[source], self.activations[source].shape
        self.declare(name, self.torch_shapes[source], call.node, layout, shape)
        self.ops.append(Op(kind, call.node, (source, *others), name, **fields))
        return name

    def view(self, call: Call, source: str, layout: Layout) -> None:
        """Let the call's result be its source's memory, read as this layout."""
        self.append(call, OpKind.RESHAPE, source, layout=layout)

    def arranged(self, node: str, source: str, order: Sequence[int]) -> str:
        """The source with its axes as wholes in this order of memory, slowest first, and the graph's shape accordingly.

        Raises:
            UnsupportedOpError: a device would need more nested loops than it has to move the elements.
        """
        order = tuple(order)
        layout = self.layouts[source]
        wanted = Layout.of(layout.sizes, order)
        shape = memory_shape(wanted, order)
        if layout.merged() == wanted and self.activations[source].shape == shape:
            return source
        if (source, order) not in self.arrangements:
            self.arrangements[source, order] = self._arrange(node, source, order, wanted)
        return self.arrangements[source, order]

    def _arrange(self, node: str, source: str, order: Shape, wanted: Layout) -> str:
        name = f"{source}/{''.join(map(str, order))}"
        layout, torch_shape = self.layouts[source], self.torch_shapes[source]
        current = source
        if layout.merged() != wanted:
            digits, permutation = layout.transposition(order)
            if len(digits) > _LOOPS:
                hint = "permute and reshape in fewer steps, or keep channels first throughout"
                raise UnsupportedOpError(node, f"it needs elements moved along {len(digits)} axes at once", hint)
            digits, permutation = (1, *digits), (0, *(place + 1 for place in permutation))
            if self.activations[source].shape != digits:
                self.declare(f"{name}/digits", torch_shape, node, layout, digits)
                self.ops.append(Op(OpKind.RESHAPE, node, (source,), f"{name}/digits"))
                current = f"{name}/digits"
            moved = tuple(digits[axis] for axis in permutation)
            is_last = moved == memory_shape(wanted, order)
            self.declare(name if is_last else f"{name}/moved", torch_shape, node, wanted, moved)
            self.ops.append(Op(OpKind.TRANSPOSE, node, (current,), name if is_last else f"{name}/moved", permutation=permutation))
            current = f"{name}/moved"
            if is_last:
                return name
        self.declare(name, torch_shape, node, wanted, memory_shape(wanted, order))
        self.ops.append(Op(OpKind.RESHAPE, node, (current,), name))
        return name

    def in_wholes(self, node: str, source: str) -> tuple[str, tuple[int, ...]]:
        """The source, and the order of its axes in memory; moved only where an axis does not lie there as a whole."""
        order = self.layouts[source].order or (*range(1, len(self.layouts[source].axes)), 0)
        return self.arranged(node, source, order), order

    def channels_last(self, node: str, source: str) -> str:
        """The source as (1, H, W, C), (1, 1, W, C) or (1, F)."""
        rank = len(self.layouts[source].axes)
        return self.arranged(node, source, (*range(1, rank), 0))

    def with_rank(self, call: Call, source: str, rank: int) -> str:
        """The source with axes of one element behind its batch, as torch aligns shapes at their last axes."""
        shape = self.torch_shapes[source]
        if len(shape) == rank:
            return source
        if len(shape) > rank or shape[0] != 1:
            raise call.refusal(f"it combines {shape} with {rank} axes", "use activations of one shape")
        name = f"{call.output}/aligned"
        added = rank - len(shape)
        layout = Layout(((),) * added + self.layouts[source].axes)
        # The source's batch, of one sample, is an axis of one element here; its own axes follow.
        self.declare(name, (1,) * added + shape, call.node, layout)
        self.ops.append(Op(OpKind.RESHAPE, call.node, (source,), name))
        return name

    def reshaped(self, call: Call, source: str, kind: OpKind, suffix: str, shape: Shape, /, **fields: Any) -> str:  # noqa: ANN401
        """Add an operator between memory of two shapes, without a meaning in the source; return what it makes."""
        name = f"{call.output}/{suffix}"
        self.declare(name, (1, math.prod(shape)), call.node, Layout.row_major((math.prod(shape),)), shape)
        self.ops.append(Op(kind, call.node, (source,), name, **fields))
        return name

    def pad(self, call: Call, source: str, pads: tuple[int, int, int, int], value: int | None = None) -> str:
        """Add explicit padding in front of the call's operator, if there is any; return what to read instead."""
        if not any(pads):
            return source
        top, bottom, left, right = pads
        name = f"{call.output}/pad"
        _, height, width, channels = self.activations[source].shape
        self.declare(name, (1, channels, height + top + bottom, width + left + right), call.node)
        self.ops.append(Op(OpKind.PAD, call.node, (source,), name, pads=pads, pad_value=value))
        return name


Handler = Callable[[Call, Sketch], None]


def memory_shape(layout: Layout, order: Sequence[int] | None = None) -> Shape:
    """The graph's shape of an activation: its axes in the order of memory, with a height of 1 where there is one axis less.

    Where an axis does not lie in memory as a whole, it is a row of elements.
    """
    order = layout.order if order is None else order
    sizes = layout.sizes
    if order is None:
        return (1, math.prod(sizes))
    return (1, *[1] * (len(sizes) == 2), *(sizes[axis] for axis in order))


def draw(sample_shape: Shape, source: str, translate_all: Callable[[Sketch], str]) -> tuple[Graph, str]:
    """Draw a network for the layout of samples that leaves the fewest elements to be moved.

    Args:
        sample_shape: of one sample as the source reads it, without the batch.
        source: name of the input.
        translate_all: translates all calls and returns the name of the result.

    Returns:
        The graph, its result channels last, and the layout of its input: one of `fedmote.package.inputs.layouts_of`.

    Raises:
        UnsupportedOpError: a call has no int8 form, whatever the layout.
        ConversionError: samples have more axes than 3.
    """
    drawn: list[tuple[int, Graph, str]] = []
    refusal: UnsupportedOpError | None = None
    for layout in layouts_of(sample_shape):
        sketch = Sketch()
        is_first = layout == layouts_of(sample_shape)[0]
        lies = Layout.channels_last(sample_shape) if is_first else Layout.row_major(sample_shape)
        sketch.declare(source, (1, *sample_shape), "input", lies)
        try:
            result = sketch.channels_last("output", translate_all(sketch))
        except UnsupportedOpError as error:
            refusal = refusal or error
            continue
        graph = Graph(source, result, sketch.activations, tuple(sketch.ops))
        moved = sum(math.prod(graph.activations[op.output].shape) for op in graph.ops if op.kind is OpKind.TRANSPOSE)
        drawn.append((moved, graph, layout))
        if not moved:
            break
    if not drawn and refusal is not None:
        raise refusal
    _, graph, layout = min(drawn, key=lambda candidate: candidate[0])
    return graph, layout


@dataclass(frozen=True)
class Capture:
    """A captured network.

    Attributes:
        graph: the whole network, head included, as its front-end leaves it: before any pass.
        modules: per activation, the paths of the modules inside which it was made, outermost first.
        tensors: its floating-point state by names of its own, float32.
        sample_shape: of one sample as the source reads it, without the batch.
        reference: computes the logits (N, C) of samples float32 (N, *sample_shape) in the source's own arithmetic.
        input_layout: of samples, one of `fedmote.package.inputs.layouts_of`; None: channels are first.
    """

    graph: Graph
    modules: dict[str, tuple[str, ...]]
    tensors: Tensors
    sample_shape: Shape
    reference: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    input_layout: str | None = None
