# SPDX-License-Identifier: Apache-2.0
"""From a torch module to a graph: `torch.export` gives the calls, `operators` translates them one by one.

The exported program is the one before decomposition: its operators are those that the module's author wrote, which is what
messages must speak of. In-place operators are read as their pure forms; that is right as long as nobody reads the overwritten
tensor later, which is checked. An operator of several results is translated once for each that is read.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package.graph import Tensors
from fedmote_convert.layout import Shape
from fedmote_convert.operators import RESHAPES, VIEWS, hint_for, operator_name, translate
from fedmote_convert.sketch import Call, Capture, Constant, Parameter, Sketch, Value, draw

_REFERENCE_BATCH = 256
# Operators that hand constants of the source text on.
_HANDED_ON = frozenset({"lift_fresh", "lift_fresh_copy", "clone", "detach", "alias"})
_COMPUTE_BEFORE = (
    "compute it once, before the conversion; of weight_norm and its like that is "
    "torch.nn.utils.parametrize.remove_parametrizations(layer, name)"
)
Argument = Value | Parameter | Constant


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
    if not all(sample_shape):
        raise ConversionError(f"samples of shape {sample_shape} hold no elements; expected (C, H, W), (C, W) or (F,)")
    program = _export(module, sample_shape)
    nodes = _needed(program.graph)
    known = _known(program, nodes, tensors)
    source, result = _single_input(nodes, known), _single_output(program.graph)
    if not isinstance(result, fx.Node) or result not in nodes or result.name in known:
        raise ConversionError("forward() returns something that does not depend on the sample; it must return the logits")
    computed = [node for node in nodes if node is not source and node.name not in known and not _is_many(node)]
    fixed = _fixed(nodes, source)

    def translate_all(sketch: Sketch) -> str:
        for node in computed:
            if node.op != "call_function":
                raise UnsupportedOpError(
                    _place(node), f"a {node.op} of {node.target}", "use parameters, buffers and torch operators"
                )
            if node in fixed:
                raise UnsupportedOpError(_place(node), "it computes on parameters or constants alone", _COMPUTE_BEFORE)
            translate(_call(node, known), sketch)
        return result.name

    graph, layout = draw(sample_shape, source.name, translate_all)
    _refuse_overwritten(program.graph, set(nodes))  # last: other refusals say more
    modules = {node.name: _paths(node) for node in nodes if node.name in graph.activations}
    return Capture(graph, modules, tensors, sample_shape, lambda x: logits_of(module, x), layout)


def _known(program: torch.export.ExportedProgram, nodes: Iterable[fx.Node], tensors: Tensors) -> dict[str, Argument]:
    """What does not depend on the sample, by the name of its node: tensors of the checkpoint and constants, reshaped or not."""
    signature = program.graph_signature
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    known: dict[str, Argument] = {}
    for node in nodes:
        if node.op == "placeholder" and node.name in targets:
            name = targets[node.name]
            if name in tensors:
                known[node.name] = Parameter(name, tensors[name].shape)
            else:
                known[node.name] = Constant(_constant(program, name))
        elif node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node) and node.args[0].name in known:
            handed = _handed_on(node, known[node.args[0].name])
            if handed is not None:
                known[node.name] = handed
    return known


def _constant(program: torch.export.ExportedProgram, name: str) -> NDArray[np.float32]:
    value = program.constants.get(name)
    value = program.state_dict.get(name) if value is None else value
    if not isinstance(value, torch.Tensor):
        raise ConversionError(f"constant {name} is no tensor; expected parameters, buffers and tensors")
    return np.asarray(value.detach().cpu().numpy(), np.float32)


def _handed_on(node: fx.Node, known: Argument) -> Argument | None:
    """What a view of a parameter or constant is; None where something is computed."""
    name, shape = operator_name(str(node.target)), _shape(node.meta["val"]) if "val" in node.meta else ()
    if isinstance(known, Constant) and name in RESHAPES | _HANDED_ON:
        return Constant(known.values.reshape(shape))
    if isinstance(known, Parameter) and name in RESHAPES | _HANDED_ON:
        return Parameter(known.name, shape, is_view=known.is_view or shape != known.shape)
    return None


def logits_of(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (N, C) of a module; one sample at a time would be slow, all at once large.

    Raises:
        ConversionError: the module does not compute the samples of a batch side by side.
    """
    starts = range(0, len(x), _REFERENCE_BATCH)
    with torch.no_grad():
        return np.concatenate([_batch_of_logits(module, x[start : start + _REFERENCE_BATCH]) for start in starts])


def _batch_of_logits(module: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    reason = ""
    try:
        logits: NDArray[np.float32] = module(torch.from_numpy(x)).numpy()
    except RuntimeError as error:  # torch's own, of shapes that do not suit each other
        reason = f": {(str(error).strip().splitlines() or [''])[0]}"
    if reason or len(logits) != len(x):
        raise ConversionError(
            f"the module takes one sample, but not a batch of {len(x)} samples{reason}; write x.shape[0] or -1 where it says 1"
        )
    return logits


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


def _fixed(nodes: Iterable[fx.Node], source: fx.Node) -> set[fx.Node]:
    """Those of the nodes, in order, that have operands none of which depends on the sample."""
    depending = {source}
    fixed = set()
    for node in nodes:
        if depending.intersection(node.all_input_nodes):
            depending.add(node)
        elif node.all_input_nodes:
            fixed.add(node)
    return fixed


def _single_input(nodes: Iterable[fx.Node], known: Mapping[str, Argument]) -> fx.Node:
    inputs = [node for node in nodes if node.op == "placeholder" and node.name not in known]
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
    return node.op == "call_function" and (node.target is operator.getitem or operator_name(str(node.target)) in VIEWS)


def _is_many(node: fx.Node) -> bool:
    """Whether the node makes several results, which others take apart."""
    return isinstance(node.meta.get("val"), list | tuple)


def _is_in_place(node: fx.Node) -> bool:
    parts = str(node.target).split(".")
    return len(parts) > 1 and parts[1].endswith("_") and not parts[1].startswith("_")


def _call(node: fx.Node, known: Mapping[str, Argument]) -> Call:
    """The call of a node; one that takes a result out of several is the call that makes them, with its `index`."""
    value = node.meta.get("val")
    maker, index = _maker(node)
    schema = getattr(maker.target, "_schema", None)
    if schema is None or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        hint = hint_for(operator_name(str(maker.target)))
        raise UnsupportedOpError(_place(maker), f"operator {maker.target} does not return one float32 tensor", hint)
    arguments: dict[str, Any] = {} if index is None else {"index": index}
    for position, argument in enumerate(schema.arguments):
        if position < len(maker.args):
            given: Any = maker.args[position]
        else:
            given = maker.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = _argument(given, known)
    return Call(_place(maker), str(maker.target), arguments, _shape(value), node.name)


def _maker(node: fx.Node) -> tuple[fx.Node, int | None]:
    """The operator that makes a node's value, and which of its results it is, if it makes several."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return node.args[0], int(node.args[1])  # type: ignore[arg-type]  # an index into a tuple
    return node, None


def _argument(given: Any, known: Mapping[str, Argument]) -> Any:  # noqa: ANN401  # whatever the schema allows
    if isinstance(given, list | tuple):
        return [_argument(item, known) for item in given]
    if not isinstance(given, fx.Node):
        return given
    return known.get(given.name, Value(given.name))


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
