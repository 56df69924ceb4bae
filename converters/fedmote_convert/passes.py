# SPDX-License-Identifier: Apache-2.0
"""Graph passes: from what the module's author wrote to what a microcontroller runs.

`PASSES` at the end is the table of contents. Each pass takes a graph and returns one that computes the same (to float
rounding), so any prefix of the list is a correct conversion; a test executes the graph after each pass. Before and after are
in each docstring, operators in capitals, `->` for "is read by".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from fedmote.package import fixed_point
from fedmote.package.graph import BINARY, Activation, Graph, Op, OpKind

Pass = Callable[[Graph], Graph]

_CONVOLUTIONS = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D)
_POOLS = (OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D)
_WEIGHTED = (*_CONVOLUTIONS, OpKind.FULLY_CONNECTED)


def run_passes(graph: Graph) -> Graph:
    """Apply all passes in order."""
    for function in PASSES:
        graph = function(graph)
    return graph


def drop_identities(graph: Graph) -> Graph:
    """Remove what changes nothing: dropout, identity, views to the same shape, slices of the whole.

    Before: a -> RESHAPE | STRIDED_SLICE in steps of one -> b of one shape. After: readers of b read a.
    """
    identities = [op for op in graph.ops if _is_identity(op) and _shape(graph, op.output) == _shape(graph, op.inputs[0])]
    for op in identities:
        graph = _without(graph, op)
    return graph


def _is_identity(op: Op) -> bool:
    """Whether an operator changes nothing if it keeps the shape; a slice in steps of -1 turns an axis round."""
    return op.kind is OpKind.RESHAPE or (op.kind is OpKind.STRIDED_SLICE and set(op.steps) == {1})


def join_reshapes(graph: Graph) -> Graph:
    """Read memory as it is in the end, not as it was called on the way.

    Before: a -> RESHAPE -> RESHAPE -> c. After: a -> RESHAPE -> c, and nothing where a and c have one shape.
    """
    for op in graph.ops:
        current = _producer(graph, op.output) if op.kind is OpKind.RESHAPE else None
        producer = None if current is None else _producer(graph, current.inputs[0])
        if current is not None and producer is not None and producer.kind is OpKind.RESHAPE:
            graph = _replace_op(graph, current, replace(current, inputs=producer.inputs))
    return drop_identities(_without_unread(graph))


def fold_batch_norms(graph: Graph) -> Graph:
    """Move each batch normalisation into the weights of the operator before it; the values follow when weights are bound.

    Before: CONV_2D | DEPTHWISE_CONV_2D | FULLY_CONNECTED -> batch norm. After: the operator, with the norm in its source. A norm
    behind anything else stays: it is a depthwise convolution with a kernel of one pixel. One of features stands between two
    RESHAPE, which go with it.
    """
    for norm in [op for op in graph.ops if _is_batch_norm(op)]:
        reshape = _sole_producer(graph, norm)
        is_of_features = reshape is not None and reshape.kind is OpKind.RESHAPE
        producer = _sole_producer(graph, reshape) if is_of_features and reshape is not None else reshape
        if producer is None or producer.kind not in _WEIGHTED or producer.activation is not Activation.NONE:
            continue
        if is_of_features and producer.kind is not OpKind.FULLY_CONNECTED:
            continue
        assert norm.source is not None and producer.source is not None  # both have weights
        if norm.source.chw != (producer.source.chw if _is_batch_norm(producer) else None):
            continue
        source = replace(producer.source, batch_norm=producer.source.batch_norm + norm.source.batch_norm)
        if is_of_features:
            graph = _without(_replace_op(graph, producer, replace(producer, source=source)), norm)
        else:
            graph = _merge(graph, producer, norm, source=source)
    return join_reshapes(graph)


def fold_batch_norms_forward(graph: Graph) -> Graph:
    """Move a batch normalisation that is left into the weights of the operator behind it, where that pads nothing.

    A padded zero would have to be what the norm makes of a zero less its offset, so in front of a PAD it stays.

    Before: batch norm -> CONV_2D | DEPTHWISE_CONV_2D | FULLY_CONNECTED. After: the operator, with the norm in its source.
    """
    for op in graph.ops:
        if op.kind not in _WEIGHTED or _is_batch_norm(op) or op.padding != "VALID" or op.source is None:
            continue
        norm = _sole_producer(graph, op)
        if norm is not None and op.kind is OpKind.FULLY_CONNECTED and norm.kind is OpKind.RESHAPE:
            norm = _sole_producer(graph, norm)
            if norm is None or norm.source is None or norm.source.chw != op.source.chw or not _is_pixel(graph, norm.output):
                continue
        if norm is None or norm.source is None or not _is_batch_norm(norm) or norm.activation is not Activation.NONE:
            continue
        source = replace(op.source, input_norm=norm.source.batch_norm + op.source.input_norm)
        graph = _without(_replace_op(graph, op, replace(_current(graph, op), source=source)), norm)
    return join_reshapes(graph)


def _is_pixel(graph: Graph, name: str) -> bool:
    """Whether an activation is an image of one pixel."""
    return _shape(graph, name)[:3] == (1, 1, 1)


def join_activations(graph: Graph) -> Graph:
    """Make one of two clamps in a row.

    Before: RELU -> RELU6, or any other pair that is a clamp which an activation has. After: one RELU with the narrower interval.
    """
    for op in graph.ops:
        producer = _sole_producer(graph, op) if op.kind is OpKind.RELU else None
        if producer is not None and producer.kind is OpKind.RELU:
            if Activation.RELU_N1_TO_1 in (op.activation, producer.activation) and op.activation is not producer.activation:
                continue
            narrower = Activation.RELU6 if Activation.RELU6 in (op.activation, producer.activation) else op.activation
            graph = _merge(graph, producer, replace(op, activation=narrower), kind=OpKind.RELU, activation=narrower)
    return graph


def fuse_activations(graph: Graph) -> Graph:
    """Let the operator before a clamp do it.

    Before: CONV_2D | DEPTHWISE_CONV_2D | FULLY_CONNECTED | ADD | MUL | pool -> RELU. After: the operator with that activation.
    """
    for op in graph.ops:
        producer = _sole_producer(graph, op) if op.kind is OpKind.RELU else None
        if producer is not None and producer.kind in (*_WEIGHTED, *_POOLS, *BINARY) and producer.activation is Activation.NONE:
            graph = _merge(graph, producer, op, activation=op.activation)
    return graph


def write_lone_clamps_as_products(graph: Graph) -> Graph:
    """Let a product by one do a clamp to [-1, 1] that nothing before it can: as an operator TensorFlow Lite Micro lacks it.

    Before: RELU with RELU_N1_TO_1. After: MUL by 1 with that activation.
    """
    ops = []
    for op in graph.ops:
        if op.kind is OpKind.RELU and op.activation is Activation.RELU_N1_TO_1:
            op = replace(op, kind=OpKind.MUL, constant=np.ones(1, np.float32))
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def join_pads(graph: Graph) -> Graph:
    """Make one of two paddings in a row.

    Before: PAD -> PAD of the same value. After: PAD by the sums.
    """
    for op in graph.ops:
        producer = _sole_producer(graph, op) if op.kind is OpKind.PAD else None
        if producer is not None and producer.kind is OpKind.PAD and producer.pad_value == op.pad_value:
            top, bottom, left, right = (one + two for one, two in zip(producer.pads, op.pads, strict=True))
            graph = _merge(graph, producer, op, pads=(top, bottom, left, right))
    return graph


def average_over_the_whole_image(graph: Graph) -> Graph:
    """Write an average over everything as MEAN, which has a scale of its own where a pool must keep its input's.

    Before: AVERAGE_POOL_2D whose window is the whole image. After: MEAN.
    """
    ops = []
    for op in graph.ops:
        _, height, width, *_ = (*_shape(graph, op.inputs[0]), 0, 0)
        is_whole = op.kind is OpKind.AVERAGE_POOL_2D and op.kernel == (height, width) and op.padding == "VALID"
        if is_whole and op.activation is Activation.NONE:
            op = Op(OpKind.MEAN, op.name, op.inputs, op.output)
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def average_to_features(graph: Graph) -> Graph:
    """Let MEAN make features at once.

    Before: MEAN (1, 1, 1, C) -> RESHAPE (1, C). After: MEAN (1, C).
    """
    for op in graph.ops:
        producer = _sole_producer(graph, op) if op.kind is OpKind.RESHAPE else None
        if producer is not None and producer.kind is OpKind.MEAN and len(_shape(graph, op.output)) == 2:
            graph = _merge(graph, producer, op)
    return graph


def legalise_padding(graph: Graph) -> Graph:
    """Turn explicit padding into TFLite's own where both read the same pixels, and trim what nobody reads.

    TFLite's SAME pads the far end by the odd pixel and by no more than the last window needs; torch pads both ends alike. So
    stride 1 becomes SAME, stride 2 mostly stays a PAD whose unread far rows are cut off.

    Before: PAD -> CONV_2D | DEPTHWISE_CONV_2D. After: the operator with SAME, or with VALID behind a smaller PAD or none.
    Before: PAD -> pool. After: the pool behind a smaller PAD (SAME would not count the padding); a maximum over padding that is
    below all values is one with SAME.
    """
    for op in graph.ops:
        pad = _sole_producer(graph, op) if op.kind in (*_CONVOLUTIONS, *_POOLS) else None
        if pad is None or pad.kind is not OpKind.PAD or op.padding != "VALID":
            continue
        rows = _trim(graph, pad, op, axis=0)
        columns = _trim(graph, pad, op, axis=1)
        if (*rows, *columns) == (0, 0, 0, 0):
            graph = _skip(graph, pad, replace(op, inputs=pad.inputs))
        elif _is_as_tflite_pads(pad, op) and _is_same(graph, pad, op, 0, rows) and _is_same(graph, pad, op, 1, columns):
            graph = _skip(graph, pad, replace(op, padding="SAME", inputs=pad.inputs))
        else:
            graph = _resize_pad(graph, pad, (*rows, *columns))
    return graph


def _is_as_tflite_pads(pad: Op, op: Op) -> bool:
    """Whether what stands in the padding is what SAME takes there: zeros in convolutions, nothing in a maximum."""
    if op.kind is OpKind.MAX_POOL_2D:
        return pad.pad_value == fixed_point.INT8_MIN
    return op.kind in _CONVOLUTIONS and pad.pad_value is None


def _reach(op: Op, axis: int) -> int:
    """Pixels that one window spans."""
    return (op.kernel[axis] - 1) * op.dilation[axis] + 1


def _trim(graph: Graph, pad: Op, op: Op, axis: int) -> tuple[int, int]:
    """(near, far) padding that the operator's windows read."""
    near = pad.pads[2 * axis]
    size = _shape(graph, pad.inputs[0])[1 + axis]
    read = (_shape(graph, op.output)[1 + axis] - 1) * op.stride[axis] + _reach(op, axis)
    return near, max(0, read - near - size)


def _is_same(graph: Graph, pad: Op, op: Op, axis: int, trimmed: tuple[int, int]) -> bool:
    """Whether SAME on the unpadded input makes the same windows."""
    size = _shape(graph, pad.inputs[0])[1 + axis]
    outputs = -(-size // op.stride[axis])
    total = max(0, (outputs - 1) * op.stride[axis] + _reach(op, axis) - size)
    return outputs == _shape(graph, op.output)[1 + axis] and trimmed == (total // 2, total - total // 2)


def _resize_pad(graph: Graph, pad: Op, pads: tuple[int, int, int, int]) -> Graph:
    top, bottom, left, right = pads
    _, height, width, channels = _shape(graph, pad.inputs[0])
    padded = replace(graph.activations[pad.output], shape=(1, height + top + bottom, width + left + right, channels))
    graph = _replace_op(graph, pad, replace(pad, pads=pads))
    return replace(graph, activations={**graph.activations, pad.output: padded})


# --- editing a graph -------------------------------------------------------------------------------------------------


def _is_batch_norm(op: Op) -> bool:
    return op.source is not None and op.source.layout == "batch_norm"


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    return graph.activations[name].shape


def _producer(graph: Graph, name: str) -> Op | None:
    return next((op for op in graph.ops if op.output == name), None)


def _current(graph: Graph, op: Op) -> Op:
    """The operator as it is in the graph by now."""
    return next(current for current in graph.ops if current.output == op.output)


def _is_read_once(graph: Graph, name: str) -> bool:
    return name != graph.output and sum(op.inputs.count(name) for op in graph.ops) == 1


def _sole_producer(graph: Graph, op: Op) -> Op | None:
    """The operator before `op`, if `op` is still in the graph and alone reads its result."""
    current = _producer(graph, op.output)
    if current is None or not _is_read_once(graph, current.inputs[0]):
        return None
    return _producer(graph, current.inputs[0])


def _with_ops(graph: Graph, ops: Iterable[Op], output: str | None = None) -> Graph:
    """The graph with these operators and only the activations that they use."""
    ops = tuple(ops)
    used = {graph.input, *(op.output for op in ops)}
    activations = {name: activation for name, activation in graph.activations.items() if name in used}
    return replace(graph, ops=ops, activations=activations, output=output or graph.output)


def _without_unread(graph: Graph) -> Graph:
    """The graph without operators whose results nobody reads."""
    needed, kept = {graph.output}, []
    for op in reversed(graph.ops):
        if op.output in needed:
            needed.update(op.inputs)
            kept.append(op)
    return _with_ops(graph, reversed(kept))


def _replace_op(graph: Graph, old: Op, new: Op) -> Graph:
    return replace(graph, ops=tuple(new if op.output == old.output else op for op in graph.ops))


def _merge(graph: Graph, first: Op, second: Op, **changes: object) -> Graph:
    """One operator in place of two: `first` with the changes, making what `second` made."""
    merged = replace(first, output=second.output, **changes)  # type: ignore[arg-type]  # fields by name, for all passes
    return _with_ops(graph, (merged if op is first else op for op in graph.ops if op.output != second.output))


def _skip(graph: Graph, pad: Op, reader: Op) -> Graph:
    """The graph without the padding, with its reader as given."""
    ops = (reader if op.output == reader.output else op for op in graph.ops if op.output != pad.output)
    return _with_ops(graph, ops)


def _without(graph: Graph, gone: Op) -> Graph:
    """The graph without an operator; who read its result reads its input."""
    current = _producer(graph, gone.output)
    source = gone.inputs[0] if current is None else current.inputs[0]
    ops = []
    for op in graph.ops:
        if op.output != gone.output:
            inputs = tuple(source if name == gone.output else name for name in op.inputs)
            ops.append(replace(op, inputs=inputs))
    return _with_ops(graph, ops, output=source if graph.output == gone.output else None)


PASSES: tuple[Pass, ...] = (
    drop_identities,
    join_reshapes,
    average_over_the_whole_image,
    average_to_features,
    fold_batch_norms,
    fold_batch_norms_forward,
    join_activations,
    fuse_activations,
    write_lone_clamps_as_products,
    join_pads,
    legalise_padding,
)
