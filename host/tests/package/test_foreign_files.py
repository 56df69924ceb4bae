# SPDX-License-Identifier: Apache-2.0
"""Files in forms that other converters write, read and run, against TensorFlow Lite Micro on the very file."""

import numpy as np
import pytest

from fedmote.errors import PackageError, UnsupportedOpError
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.graph import OpKind
from fedmote.package.plan_check import check_plan
from fedmote.package.tflite_reader import has_outer_conversion, has_softmax, read
from fedmote.package.tflite_writer import write

from .foreign import Foreign

DRAWS = 60


def random_shape(rng, largest=5, rank=None):
    rank = rank or int(rng.integers(2, 5))
    return (1, *(int(size) for size in rng.integers(1, largest + 1, rank - 1)))


def any_scale(rng):
    return float(np.exp(rng.uniform(-6, 1)))


def any_int8(rng, shape=()):
    return rng.integers(-128, 128, shape).astype(np.int8)


def mean(rng):
    file, shape = Foreign(), random_shape(rng)
    rank = len(shape)
    axes = [int(axis) for axis in rng.choice(rank, int(rng.integers(1, rank + 1)), replace=False)]
    is_kept = bool(rng.random() < 0.5)
    out = tuple(1 if axis in axes else size for axis, size in enumerate(shape) if is_kept or axis not in axes) or (1,)
    scale = any_scale(rng)
    x = file.tensor(shape, scale, int(any_int8(rng)))
    y = file.tensor(out, scale * float(np.exp(rng.uniform(-1, 1))), int(any_int8(rng)))
    named = [axis - rank if rng.random() < 0.3 else axis for axis in axes]
    file.node("MEAN", [x, file.numbers(*named)], y, options="ReducerOptions", keepDims=is_kept)
    return file.pack(x, y), shape


def pad(rng):
    file, shape = Foreign(), random_shape(rng)
    pads = [(0, 0)] + [tuple(int(n) if rng.random() < 0.6 else 0 for n in rng.integers(0, 3, 2)) for _ in shape[1:]]
    zero_point = int(any_int8(rng))
    x = file.tensor(shape, 0.1, zero_point)
    y = file.tensor(tuple(size + before + after for size, (before, after) in zip(shape, pads, strict=True)), 0.1, zero_point)
    paddings = file.tensor((len(shape), 2), data=np.array(pads, np.int32))
    if rng.random() < 0.5:
        file.node("PAD", [x, paddings], y, options="PadOptions")
    else:
        file.node("PADV2", [x, paddings, file.tensor((1,), 0.1, zero_point, any_int8(rng, 1))], y, options="PadV2Options")
    return file.pack(x, y), shape


def strided_slice(rng):
    shape = random_shape(rng, 6)
    rank = len(shape)
    while True:
        begins, ends = ([int(rng.integers(-size - 1, size + 2)) for size in shape] for _ in range(2))
        steps = [int(rng.choice([1, 1, 2, 3, -1, -2])) for _ in shape]
        open_mask, endless_mask = (int(mask) for mask in rng.integers(0, 1 << rank, 2))
        shrink_mask = int(rng.integers(0, 1 << rank)) & ~open_mask if rng.random() < 0.4 else 0
        out = []
        for axis, size in enumerate(shape):
            if shrink_mask >> axis & 1:
                begins[axis], steps[axis] = int(rng.integers(-size, size)), 1
                continue
            begin = None if open_mask >> axis & 1 else begins[axis]
            end = None if endless_mask >> axis & 1 else ends[axis]
            out.append(len(range(*slice(begin, end, steps[axis]).indices(size))))
        if out and 0 not in out:
            break
    file = Foreign()
    x, y = file.tensor(shape, 0.1, 3), file.tensor(tuple(out), 0.1, 3)
    inputs = [x, file.numbers(*begins), file.numbers(*ends), file.numbers(*steps)]
    masks = {"beginMask": open_mask, "endMask": endless_mask, "shrinkAxisMask": shrink_mask}
    file.node("STRIDED_SLICE", inputs, y, options="StridedSliceOptions", **masks)
    return file.pack(x, y), shape


def part(rng):
    file, shape = Foreign(), random_shape(rng, 6)
    begins = [int(rng.integers(0, size)) for size in shape]
    sizes = [int(rng.integers(1, size - begin + 1)) for size, begin in zip(shape, begins, strict=True)]
    x, y = file.tensor(shape, 0.1, 3), file.tensor(tuple(sizes), 0.1, 3)
    named = [-1 if begin + size == whole else size for begin, size, whole in zip(begins, sizes, shape, strict=True)]
    dtype = np.int32 if rng.random() < 0.5 else np.int64
    inputs = [x, file.numbers(*begins, dtype=dtype), file.numbers(*named, dtype=dtype)]
    file.node("SLICE", inputs, y, options="SliceOptions")
    return file.pack(x, y), shape


def transpose(rng):
    file, shape = Foreign(), random_shape(rng, 5, int(rng.integers(2, 6)))
    permutation = [int(axis) for axis in rng.permutation(len(shape))]
    x, y = file.tensor(shape, 0.1, 3), file.tensor(tuple(shape[axis] for axis in permutation), 0.1, 3)
    file.node("TRANSPOSE", [x, file.numbers(*permutation)], y, options="TransposeOptions")
    return file.pack(x, y), shape


def concatenation(rng):
    file, shape = Foreign(), random_shape(rng)
    axis, count = int(rng.integers(0, len(shape))), int(rng.integers(2, 6))
    x = file.tensor(shape, 0.1, 3)
    shorter = [*shape]
    shorter[axis] = int(rng.integers(1, shape[axis] + 1))
    some = file.tensor(tuple(shorter), 0.1, 3)
    inputs = [x, file.numbers(*[0] * len(shape)), file.numbers(*shorter)]
    file.node("SLICE", inputs, some, options="SliceOptions")
    out = [*shape]
    out[axis] = shape[axis] * (count - 1) + shorter[axis]
    y = file.tensor(tuple(out), 0.1, 3)
    named = axis - len(shape) if rng.random() < 0.5 else axis
    file.node("CONCATENATION", [x, some, *[x] * (count - 2)], y, options="ConcatenationOptions", axis=named)
    return file.pack(x, y), shape


def operands(rng):
    """ADD and MUL with operands that repeat along any axes, on either side, of smaller rank, constant or not."""
    file, shape = Foreign(), random_shape(rng, 4)
    rank = len(shape)
    scale, second = any_scale(rng), any_scale(rng)
    zero_point, second_zero = int(any_int8(rng)), int(any_int8(rng))
    x = file.tensor(shape, scale, zero_point)
    own = tuple(size if rng.random() < 0.5 else 1 for size in shape)
    if rng.random() < 0.5:
        own = tuple(int(rng.integers(1, 4)) if size == 1 and axis else size for axis, size in enumerate(own))
        own = own if all(a == b or 1 in (a, b) for a, b in zip(own, shape, strict=True)) else shape
        inputs = [x, file.tensor(own, second, second_zero, any_int8(rng, own))]
        first = shape
    else:
        first = tuple(1 if rng.random() < 0.3 else size for size in shape)
        begin = file.numbers(*[0] * rank)
        parts = []
        for wanted in (first, own):
            parts.append(file.tensor(wanted, scale, zero_point))
            file.node("SLICE", [x, begin, file.numbers(*wanted)], parts[-1], options="SliceOptions")
        other = file.tensor(own, second, second_zero)
        file.node("QUANTIZE", [parts[1]], other, 1, options="QuantizeOptions")
        if rank > 2 and rng.random() < 0.3:
            flat = file.tensor(own[1:], second, second_zero)
            other = file.node("SQUEEZE", [other], flat, 1, options="SqueezeOptions", squeezeDims=[0])
        inputs = [parts[0], other]
    out = tuple(max(pair) for pair in zip(first, own, strict=True))
    operator = "ADD" if rng.random() < 0.5 else "MUL"
    y = file.tensor(out, 2 * max(scale, second) if operator == "ADD" else scale * second * 40, int(any_int8(rng)))
    inputs = inputs[::-1] if rng.random() < 0.5 else inputs
    options = {"options": f"{operator.title()}Options", "fusedActivationFunction": int(rng.integers(0, 4))}
    file.node(operator, inputs, y, **options)
    return file.pack(x, y), shape


def batches(rng):
    """What a dense layer of sequences becomes in some converters: tensors without a batch axis inside the graph."""
    file = Foreign()
    steps, channels, outputs = (int(size) for size in rng.integers(1, 5, 3))
    x = file.tensor((1, steps, channels), 0.1, 3)
    wide = file.tensor((1, 1, steps, channels), 0.1, 3)
    file.node("EXPAND_DIMS", [x, file.numbers(1)], wide, 1, options="ExpandDimsOptions")
    flat = file.tensor((steps, channels), 0.1, 3)
    file.node("SQUEEZE", [wide], flat, 1, options="SqueezeOptions", squeezeDims=[0, 1])
    weights = file.tensor((outputs, channels), 0.02, 0, any_int8(rng, (outputs, channels)))
    dense = file.tensor((steps, outputs), 0.2, -4)
    file.node("FULLY_CONNECTED", [flat, weights], dense, 4, options="FullyConnectedOptions")
    soft = file.tensor((steps, outputs), 1 / 256, -128)
    file.node("SOFTMAX", [dense], soft, options="SoftmaxOptions", beta=1.0)
    y = file.tensor((1, steps * outputs), 1 / 256, -128)
    shape = file.numbers(1, steps * outputs)
    file.node("RESHAPE", [soft, shape], y, 1, options="ReshapeOptions", newShape=[1, steps * outputs])
    return file.pack(x, y), (1, steps, channels)


@pytest.mark.parametrize("form", [mean, pad, strided_slice, part, transpose, concatenation, operands, batches])
def test_form_of_other_converters_equals_tflite_micro(form, run_tflm):
    rng = np.random.default_rng(sum(form.__name__.encode()))
    for draw in range(DRAWS):
        data, shape = form(rng)
        graph = read(data, "foreign.tflite")
        plan = compile_graph(graph)
        check_plan(plan.records, plan.weights)
        x = any_int8(rng, (3, *shape[1:]))
        expected = run_tflm(data, x)
        np.testing.assert_array_equal(run_int8(graph, x).reshape(expected.shape), expected, f"draw {draw}")
        np.testing.assert_array_equal(run_tflm(write(graph), x).reshape(expected.shape), expected, f"draw {draw}, written again")


@pytest.mark.parametrize(("dtype", "back"), [("float32", "DEQUANTIZE"), ("uint8", "QUANTIZE")])
def test_conversions_at_the_ends_are_left_out(dtype, back, run_tflm):
    file, shape = Foreign(), (1, 3, 4)
    scale = {"float32": (None, 0), "uint8": (0.1, 131)}[dtype]
    x = file.tensor(shape, *scale, dtype=dtype)
    inside = file.tensor(shape, 0.1, 3)
    file.node("QUANTIZE", [x], inside, 1, options="QuantizeOptions")
    soft = file.tensor(shape, 1 / 256, -128)
    file.node("SOFTMAX", [inside], soft, options="SoftmaxOptions", beta=1.0)
    y = file.tensor(shape, *{"float32": (None, 0), "uint8": (1 / 256, 0)}[dtype], dtype=dtype)
    file.node(back, [soft], y, 1, options=f"{back.title()}Options")
    data = file.pack(x, y)
    assert has_softmax(data, "x.tflite")
    assert has_outer_conversion(data, "x.tflite")
    graph = read(data, "x.tflite")
    assert [op.kind for op in graph.ops] == [OpKind.SOFTMAX]
    sample = any_int8(np.random.default_rng(3), (5, *shape[1:]))
    outer = (sample.astype(int) + 128).astype(np.uint8) if dtype == "uint8" else (sample - np.float32(3)) * np.float32(0.1)
    expected = run_tflm(data, outer).reshape(sample.shape)
    actual = run_int8(graph, sample).astype(int) + 128
    np.testing.assert_array_equal(actual if dtype == "uint8" else actual / np.float32(256), expected)


def lonely(operator, shape=(1, 4), out=None, version=2, extra=(), **options):
    file = Foreign()
    x, y = file.tensor(shape, 0.1, 3), file.tensor(out or shape, 0.1, 3)
    file.node(operator, [x, *(file.numbers(*values) for values in extra)], y, version, **options)
    return file.pack(x, y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: lonely("TANH"), "TANH has the output scale"),
        (lambda: lonely("TRANSPOSE_CONV", version=3), r"node 0 \(TRANSPOSE_CONV, version 3\): this operator is not supported"),
        (lambda: lonely("GELU", version=1), r"node 0 \(GELU, version 1\)"),
        (lambda: lonely("RESHAPE", out=(1, 5)), "changes the number of elements"),
        (lambda: lonely("ADD", extra=[[1, 2, 3, 4]], options="AddOptions"), r"\(ADD, version 2\).*is int32"),
        (
            lambda: lonely("AVERAGE_POOL_2D", (1, 4, 4, 1), options="Pool2DOptions", filterHeight=1, filterWidth=1, strideH=1,
                           strideW=1, fusedActivationFunction=4),
            r"AVERAGE_POOL_2D, version 2\).*fused activation TANH is not supported",
        ),
        (lambda: lonely("TRANSPOSE", extra=[[0, 0]], options="TransposeOptions"), "no permutation"),
        (lambda: lonely("STRIDED_SLICE", extra=[[0, 0], [1, 4], [1, 0]], options="StridedSliceOptions"), "name every axis"),
        (lambda: lonely("STRIDED_SLICE", extra=[[0, 3], [1, 3], [1, 1]], options="StridedSliceOptions"), "takes no element"),
        (
            lambda: lonely("STRIDED_SLICE", extra=[[0, 0], [1, 4], [1, 1]], options="StridedSliceOptions", ellipsisMask=1),
            "an ellipsis",
        ),
        (lambda: lonely("PAD", extra=[[1, 0, 0, 0]], options="PadOptions"), "pads the batch"),
        (lambda: lonely("PAD", extra=[[0, 0, -1, 0]], options="PadOptions"), "not negative"),
        (lambda: lonely("MEAN", extra=[[7]], options="ReducerOptions"), "axes must be"),
    ],
)  # fmt: skip
def test_what_no_device_runs_is_refused_by_name(data, message):
    with pytest.raises((PackageError, UnsupportedOpError), match=message):
        compile_graph(read(data(), "x.tflite"))
