# SPDX-License-Identifier: Apache-2.0
"""From a torch module to a graph: `torch.export` gives the calls, `operators` translates them one by one.

The exported program is the one before decomposition: its operators are those that the module's author wrote, which is what
messages must speak of. In-place operators are read as their pure forms; that is right as long as nobody reads the overwritten
tensor later, which is checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package.graph import Graph, Tensors
from fedmote_convert.operators import VIEWS, hint_for, operator_name, translate
from fedmote_convert.sketch import Call, Capture, Parameter, Shape, Sketch, Value

_REFERENCE_BATCH = 256


def capture(module: nn.Module, sample_shape: tuple[int, ...]) -> Capture:
    """Capture a module.

    Args:
        module: in evaluation mode, float32, on the CPU; one input, one output.
        sample_shape: of one sample without the batch: (C, H, W), (C, W) or (F,).

    Raises:
        ConversionError: the module is in training mode, holds other than float32, or cannot be exported.
        UnsupportedOpError: an operator has no int8 form.
    """
    tensors = state_of(module)
    if module.training:
        raise ConversionError("the module is in training mode; build() must return it after .eval()")
    program = _export(module, sample_shape)
    nodes = _needed(program.graph)
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    source, result = _single_input(nodes, names), _single_output(program.graph)
    sketch = Sketch()
    sketch.declare(source.name, (1, *sample_shape), "input")
    for node in nodes:
        if node.op == "call_function":
            translate(_call(node, names, tensors), sketch)
        elif node.op != "placeholder":
            raise UnsupportedOpError(_place(node), f"a {node.op} of {node.target}", "use parameters, buffers and torch operators")
    _refuse_overwritten(program.graph, set(nodes))  # last: other refusals say more
    modules = {node.name: _paths(node) for node in nodes if node.name in sketch.activations}
    graph = Graph(source.name, result.name, sketch.activations, tuple(sketch.ops))
    return Capture(graph, modules, tensors, sample_shape, lambda x: logits_of(module, x))


def logits_of(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (N, C) of a module; one sample at a time would be slow, all at once large."""
    with torch.no_grad():
        starts = range(0, len(x), _REFERENCE_BATCH)
        return np.concatenate([module(torch.from_numpy(x[start : start + _REFERENCE_BATCH])).numpy() for start in starts])


def state_of(module: nn.Module) -> Tensors:
    """The floating-point state of a module, statistics of batch normalisations included; counters are left out.

    Raises:
        ConversionError: a tensor has another floating-point type than float32.
    """
    tensors: Tensors = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            raise ConversionError(f"tensor {name} is {tensor.dtype}; convert the module with .float() first")
        tensors[name] = np.array(tensor.detach().cpu().numpy())  # a copy: the module may be trained on
    return tensors


def _export(module: nn.Module, sample_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    example = torch.zeros((1, *sample_shape))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch.export; nothing that a user could change
            return torch.export.export(module, (example,), strict=False)
    except Exception as error:  # torch.export passes on whatever the module's own code raises
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"torch cannot export the module with one sample of shape {sample_shape}: {first_line}; "
            f"check the sample's shape, and that forward() does not branch on values"
        ) from error


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on, in order. Checks and unused results are left out."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed: set[fx.Node] = set()
    pending = list(output.all_input_nodes)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    return [node for node in graph.nodes if node in needed]


def _single_input(nodes: Iterable[fx.Node], names: dict[str, str]) -> fx.Node:
    inputs = [node for node in nodes if node.op == "placeholder" and node.name not in names]
    if len(inputs) != 1:
        raise ConversionError(f"the output depends on {len(inputs)} inputs; forward() must take one tensor")
    return inputs[0]


def _single_output(graph: fx.Graph) -> fx.Node:
    values: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(values) != 1 or not isinstance(values[0], fx.Node):
        raise ConversionError(f"forward() returns {len(values)} values; it must return one tensor, the logits")
    return values[0]


def _refuse_overwritten(graph: fx.Graph, needed: set[fx.Node]) -> None:
    """Refuse an in-place operator whose operand, or a view of it, is read afterwards other than through its result."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not _is_in_place(node) or _is_view(node):
            continue
        hint = "use the form that is not in-place"
        if node not in needed:
            raise UnsupportedOpError(_place(node), "it writes into a part of a tensor, or into a view", hint)
        for alias in _aliases(node.all_input_nodes[0], node):
            if any(position[user] > position[node] for user in alias.users):
                raise UnsupportedOpError(_place(node), f"it overwrites {alias.name}, which is read later", hint)


def _aliases(operand: fx.Node, writer: fx.Node) -> set[fx.Node]:
    """All nodes that share memory with the operand of an in-place operator, except through that operator."""
    root = operand
    while _is_view(root):
        root = root.all_input_nodes[0]
    aliases, pending = {root}, [root]
    while pending:
        for user in pending.pop().users:
            if user is not writer and user not in aliases and _is_view(user):
                aliases.add(user)
                pending.append(user)
    return aliases


def _is_view(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(str(node.target)) in VIEWS


def _is_in_place(node: fx.Node) -> bool:
    parts = str(node.target).split(".")
    return len(parts) > 1 and parts[1].endswith("_") and not parts[1].startswith("_")


def _call(node: fx.Node, names: dict[str, str], tensors: Tensors) -> Call:
    schema = getattr(node.target, "_schema", None)
    value = node.meta.get("val")
    if schema is None or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        hint = hint_for(operator_name(str(node.target)))
        raise UnsupportedOpError(_place(node), f"operator {node.target} does not return one float32 tensor", hint)
    arguments: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            given: Any = node.args[index]
        else:
            given = node.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = _argument(given, names, tensors)
    return Call(_place(node), str(node.target), arguments, _shape(value), node.name)


def _argument(given: Any, names: dict[str, str], tensors: Tensors) -> Any:  # noqa: ANN401  # whatever the schema allows
    if isinstance(given, list | tuple):
        return [_argument(item, names, tensors) for item in given]
    if not isinstance(given, fx.Node):
        return given
    name = names.get(given.name)
    if name is None:
        return Value(given.name)
    return Parameter(name, tensors[name].shape) if name in tensors else None


def _shape(value: torch.Tensor) -> Shape:
    return tuple(int(size) for size in value.shape)


def _paths(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules around a node, outermost first, without the root."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
    return tuple(path for path, _ in stack.values() if path)


def _place(node: fx.Node) -> str:
    """The node for messages: the path of a torch.nn layer, else path of the module and name of the call."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack or not stack[-1][0]:
        return node.name
    path, kind = stack[-1]
    return str(path) if str(kind).startswith("torch.nn.modules.") else f"{path}:{node.name}"
