# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from fedmote.errors import FedmoteError, PackageError, UnsupportedOpError
from fedmote.package import tflite_schema as schema
from fedmote.package.arrangement import pack_int4
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.graph import OpKind
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.package.tflite_reader import has_softmax, read
from fedmote.package.tflite_writer import write


def test_schema_numbers_are_those_of_the_published_schema():
    published = pytest.importorskip("ai_edge_litert.schema_py_generated")
    assert {kind: getattr(published.BuiltinOperator, kind.value) for kind in OpKind} == schema.BUILTIN_CODES
    for code, (_, name) in schema.OTHER_FORMS.items():
        assert getattr(published.BuiltinOperator, name) == code
    for code, name in schema.OTHER_OPERATORS.items():
        assert getattr(published.BuiltinOperator, name) == code
    for code, name in schema.TYPE_NAMES.items():
        assert getattr(published.TensorType, name.upper()) == code
    for activation, code in schema.ACTIVATION_CODES.items():
        assert getattr(published.ActivationFunctionType, activation.value) == code
    for code, name in schema.ACTIVATION_NAMES.items():
        assert getattr(published.ActivationFunctionType, name) == code
    options = [name for name in vars(schema) if name.endswith("Options")]
    assert len(options) > 15
    for name in options:
        assert getattr(published.BuiltinOptions, name) == getattr(schema, name).UNION


def test_published_schema_reads_back_what_was_written():
    published = pytest.importorskip("ai_edge_litert.schema_py_generated")
    for seed in range(20):
        graph = random_int8_graph(seed)
        model = published.ModelT.InitFromPackedBuf(write(graph))
        subgraph = model.subgraphs[0]
        codes = {value: name for name, value in vars(published.BuiltinOperator).items() if not name.startswith("_")}
        forms = {name: kind.value for kind, name in schema.OTHER_FORMS.values()}
        names = [codes[model.operatorCodes[node.opcodeIndex].builtinCode] for node in subgraph.operators]
        assert [forms.get(name, name) for name in names] == [op.kind.value for op in graph.ops]
        for op, node in zip(graph.ops, subgraph.operators, strict=True):
            assert tuple(subgraph.tensors[node.outputs[0]].shape) == graph.activations[op.output].shape
            if op.kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D):
                options = node.builtinOptions
                assert (options.strideH, options.strideW) == op.stride
                assert (options.dilationHFactor, options.dilationWFactor) == op.dilation
                assert (options.fusedActivationFunction, options.padding) == (
                    schema.ACTIVATION_CODES[op.activation],
                    schema.PADDING_CODES[op.padding],
                )


def test_written_files_read_back_as_the_same_graph():
    for seed in range(200):
        graph = random_int8_graph(seed)
        data = write(graph)
        again = read(data, "again.tflite")
        assert write(again) == data == write(graph), f"seed {seed}"
        assert compile_graph(again).records == compile_graph(graph).records
        x = random_samples(graph, 2, seed)
        np.testing.assert_array_equal(run_int8(again, x), run_int8(graph, x))


def test_weights_are_aligned_for_reading_in_place():
    for seed in range(20):
        graph = random_int8_graph(seed)
        data = write(graph)
        for op in graph.ops:
            if op.weights is not None and op.weights.size >= 32:  # long enough to be found by content
                stored = pack_int4(op.weights) if op.weight_bits == 4 else op.weights
                assert data.index(stored.tobytes()) % 16 == 0


def test_length_of_the_file_does_not_depend_on_the_weights(convert, checkpoint, ranges_of):
    ranges = ranges_of(checkpoint(1))
    lengths = {len(convert(checkpoint(seed), ranges, 1)["posix"].encoder_tflite) for seed in range(1, 9)}
    assert len(lengths) == 1


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_file_truncated_at_any_length_is_refused(seed):
    data = write(random_int8_graph(seed))
    for length in range(len(data)):
        with pytest.raises(PackageError):
            read(data[:length], "short.tflite")


@pytest.mark.parametrize("seed", range(6))
def test_damaged_file_is_read_or_refused_but_breaks_nothing(seed):
    data = write(random_int8_graph(seed))
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            graph = read(bytes(damaged), "damaged.tflite")
            compile_graph(graph)
        except FedmoteError:
            refused += 1
    print(f"seed {seed}: {refused} of 1500 refused")
    assert 0 < refused < 1500


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 40, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64]
)
def test_other_files_are_refused(data):
    with pytest.raises(PackageError, match=r"other\.bin"):
        read(data, "other.bin")


def test_softmax_at_the_end_can_be_left_out(reference_models):
    data = (reference_models / "kws_ref_model.tflite").read_bytes()
    assert has_softmax(data, "kws")
    whole = read(data, "kws")
    assert whole.ops[-1].kind is OpKind.SOFTMAX
    assert [op.name for op in read(data, "kws", is_softmax_dropped=True).ops] == [op.name for op in whole.ops[:-1]]


def rewritten(seed, change):
    """A written file, taken apart by the published schema, changed, and packed again."""
    published = pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers

    model = published.ModelT.InitFromPackedBuf(write(random_int8_graph(seed)))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def set_code(model, _, code):
    model.operatorCodes[0].builtinCode = code
    model.operatorCodes[0].deprecatedBuiltinCode = min(code, 127)


def test_file_packed_by_the_published_schema_is_read():
    assert [op.kind for op in read(rewritten(0, lambda *_: None), "x").ops] == [op.kind for op in random_int8_graph(0).ops]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, s: set_code(m, s, 67), r"node 0 \(TRANSPOSE_CONV, version \d\)"),
        (lambda m, s: set_code(m, s, 201), r"node 0 \(builtin operator 201"),
        (lambda m, s: setattr(m.operatorCodes[0], "customCode", b"MyOp"), r"node 0 \(custom operator 'MyOp'"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]], "type", 0), "is float32"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]], "type", 3), "is uint8"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]].quantization, "scale", [0.1, 0.2]), "1 zero points|not one scale"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]], "quantization", None), "not one scale"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]], "shape", [2, 3, 3, 1]), "batch 1"),
        (lambda m, s: setattr(s.tensors[s.inputs[0]], "shape", [1, -1, 3, 1]), "static"),
        (lambda m, s: setattr(m, "version", 4), "schema version 4"),
        (lambda m, s: m.subgraphs.append(s), "2 subgraphs"),
        (lambda m, s: setattr(s, "outputs", []), "0 inputs or outputs"),
        (lambda m, s: setattr(s.operators[0], "inputs", [9999]), "does not exist"),
    ],
)
def test_form_that_no_device_runs_is_refused_by_name(change, message):
    with pytest.raises((PackageError, UnsupportedOpError), match=message):
        read(rewritten(0, change), "x")


def test_weights_with_zero_points_are_refused():
    def change(model, subgraph):
        for node in subgraph.operators:
            if subgraph.tensors[node.inputs[-1]].type == 2 and len(node.inputs) == 3:  # a bias
                quantization = subgraph.tensors[node.inputs[1]].quantization
                quantization.zeroPoint = np.full_like(quantization.zeroPoint, 3)

    with pytest.raises(UnsupportedOpError, match="zero points"):
        read(rewritten(0, change), "x")
