# SPDX-License-Identifier: Apache-2.0
"""From an `.onnx` file to a captured network: `onnx_file` reads it, `onnx_graph` follows a sample, `onnx_operators` translates.

The reference that a conversion is compared with is the standard's own implementation, `onnx_reference`, on the nodes of the file.
It is slower than the executor of graphs, but knows nothing of what was made of the model here, which is what a comparison is for.
"""

from __future__ import annotations

from pathlib import Path

from fedmote.errors import ConfigError, ConversionError, UnsupportedOpError
from fedmote.package.graph import Graph, Tensors
from fedmote.tensors import finite_complaint, shape_complaint
from fedmote_convert.onnx_file import load
from fedmote_convert.onnx_graph import Network, trace, with_last_bias
from fedmote_convert.onnx_operators import Translation, join_dense, join_hard_swish, refuse_unsupported, translate
from fedmote_convert.sketch import Capture, Sketch, draw


def capture_onnx(path: Path, weights: Tensors | None = None, origin: str = "weights") -> Capture:
    """Capture the network in an `.onnx` file.

    Args:
        path: the file; external data lies beside it.
        weights: checkpoint tensors by name that replace those of the file, float32, in the layout of a checkpoint.
        origin: words for messages about the weights.

    Raises:
        ConfigError: the file cannot be read, or the weights are not tensors of the model.
        ConversionError: it is no sound model; one input and one output of float32 are expected.
        UnsupportedOpError: an operator has no int8 form.
    """
    model = load(path)
    try:
        network = with_last_bias(trace(model, refuse_unsupported))
        graph, layout, translation = _drawn(network)
    except UnsupportedOpError as error:
        raise UnsupportedOpError(f"{path}: {error.node}", error.reason, error.hint) from error
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    _check_weights(path, weights or {}, translation.tensors, origin)
    replaced = {name: translation.forms[name].to_initialiser(values) for name, values in (weights or {}).items()}
    return Capture(
        graph,
        {name: node.modules for node in network.nodes for name in node.outputs if name in graph.activations},
        {**translation.tensors, **(weights or {})},
        network.shapes[network.input][1:],
        network.evaluator({**network.constants, **replaced}),
        layout,
    )


def _drawn(network: Network) -> tuple[Graph, str, Translation]:
    """The graph, the layout of its input, and the last translation: those for other layouts have the same tensors."""
    nodes = join_hard_swish(join_dense(network.nodes, network), network)
    translations: list[Translation] = []

    def translate_all(sketch: Sketch) -> str:
        translations.append(Translation(network, sketch))
        for node in nodes:
            translate(node, translations[-1])
        return network.output

    graph, layout = draw(network.shapes[network.input][1:], network.input, translate_all)
    return graph, layout, translations[-1]


def _check_weights(path: Path, weights: Tensors, tensors: Tensors, origin: str) -> None:
    complaint = shape_complaint(weights, tensors) or finite_complaint(weights)
    if complaint is not None:
        raise ConfigError(f"{origin}: {complaint}; the model {path} has {', '.join(tensors)}")
