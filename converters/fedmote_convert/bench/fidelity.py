# SPDX-License-Identifier: Apache-2.0
"""F1 to F14: how true the int8 forms are, each with a limit that is held to.

    F1   integer executor against TensorFlow Lite Micro                     F8   an independent converter, same scales
    F2   TensorFlow Lite Micro against tflite-runtime's reference kernels   F9   size: of the payload, of the peer's file
    F3   against LiteRT's reference kernels                                 F10  processor time of one conversion
    F4   against LiteRT as it comes                                         F11  a push of new weights
    F5   the device's C against the integer executor                        F12  determinism
    F6   accuracy and agreement of int8 with float                          F13  operators and types of the files
    F7   signal to quantization noise                                       F14  TensorFlow Lite Micro's arena
    ONNX the same model through both of torch's ONNX exporters

A measure looks at one model and says what it found; a line of the report is the worst of all models. What cannot be measured
here is left out by name; nothing holds because it was not looked at.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmote.errors import FedmoteError
from fedmote.package import tflite_reader
from fedmote.package.execute import run_int8
from fedmote.package.graph import Graph, OpKind
from fedmote.package.partition import assemble, push
from fedmote.package.quantize import dequantize_values
from fedmote.tensors import dump_safetensors
from fedmote_convert.bench.boards import roomy_board
from fedmote_convert.bench.environments import numpy_1, our_packages, run_python
from fedmote_convert.bench.files import Content, payload_bytes, read_content
from fedmote_convert.bench.interpreters import (
    run_device,
    run_litert,
    run_tflite_micro,
    run_tflite_runtime,
    tflite_micro_arena_bytes,
)
from fedmote_convert.bench.measures import arranged, largest_difference
from fedmote_convert.bench.onnx_exports import converted_through_onnx, exporters_missing, features_of, has_same_operators
from fedmote_convert.bench.processor_time import processor_seconds
from fedmote_convert.bench.same_numbers import activations_of, from_numbers_of
from fedmote_convert.bench.stacks import AEQ
from fedmote_convert.bench.subjects import NUM_REAL, WHOLE, Form, Subject, convert_here
from fedmote_convert.calibration import Recipe
from fedmote_convert.capture import capture
from fedmote_convert.convert import convert, sqnr_db
from fedmote_convert.passes import run_passes

LITERT_DENSE_LSB, LITERT_DENSE_SHARE = 2, 0.01
AGREEMENT = 0.98
ACCURACY_DROP = 0.01
SQNR_DB, DEEP_SQNR_DB, DEEP_LAYERS = 30.0, 15.0, 20
PEER_SQNR_DB = 2.0
MOBILENET = "mobilenet_v1"
# True extremes, as ai-edge-quantizer takes them here.
PLAIN = Recipe(is_equalised=False, correction_samples=0, is_steady=False, has_even_divisors=False)
TIE_SHARE, NUM_COMPARED = 0.01, 500
EXPORT_SHARE = 0.01
PAYLOAD_RATIO, PAYLOAD_FLOOR = 1.35, 20_000
PEER_SIZE_RATIO = 0.9
TIMED_MODEL, SECONDS = "ds_cnn", 1.0
PUSH_MS, PUSHES = 20.0, 5


@dataclass(frozen=True)
class Finding:
    """What a measure found for one model.

    Attributes:
        number: "F1" to "F14".
        model: name.
        measured: the figure or figures, for people.
        holds: whether the limit is kept; None where it was not measured, and `measured` says why.
        rank: how bad it is, to choose the worst of all models; higher is worse.
    """

    number: str
    model: str
    measured: str
    holds: bool | None
    rank: float = 0.0


@dataclass(frozen=True)
class Measure:
    """A line of the table.

    Attributes:
        number: "F1" to "F14".
        what: is measured.
        limit: for people.
        find: measures one model.
    """

    number: str
    what: str
    limit: str
    find: Callable[[Subject], Finding]


def executor_against_micro(subject: Subject) -> Finding:
    """F1: every int8 output of both forms."""
    return _largest("F1", subject, lambda form: run_int8(form.graph, form.inputs))


def micro_against_tflite_runtime(subject: Subject) -> Finding:
    """F2: every int8 output of both forms."""
    if not numpy_1().is_installed:
        return _unmeasured("F2", subject, numpy_1().absence)
    return _largest("F2", subject, lambda form: run_tflite_runtime(form.tflite, form.inputs))


def micro_against_litert_reference(subject: Subject) -> Finding:
    """F3: no difference without FULLY_CONNECTED; with it, small ones, seldom.

    LiteRT's reference kernel of FULLY_CONNECTED requantizes in floating point, where TensorFlow Lite Micro and tflite-runtime do
    it in integers. Where the limit is missed, the finding says what LiteRT's own default kernels make of the same file, and what
    the reference makes of the peer's.
    """
    worst, holds, texts = 0.0, True, []
    for form in subject.forms:
        made = run_litert(form.tflite, form.inputs, is_reference=True)
        difference, share = largest_difference(made, form.judged), float((made != form.judged).mean())
        limit = (LITERT_DENSE_LSB, LITERT_DENSE_SHARE) if form.has_dense else (0, 0.0)
        is_kept = difference <= limit[0] and share <= limit[1]
        worst, holds = max(worst, difference + share), holds and is_kept
        texts.append(f"{form.name} {difference} LSB, {share:.2%} of outputs")
        if not is_kept:
            other = run_litert(form.tflite, form.inputs, is_reference=False)
            own, own_share = largest_difference(other, form.judged), float((other != form.judged).mean())
            texts[-1] += f" (LiteRT's default kernels {own} LSB, {own_share:.2%})"
    if not holds:
        texts += _peer_in_litert(subject)
    return Finding("F3", subject.name, "; ".join(texts), holds, worst)


def micro_against_litert(subject: Subject) -> Finding:
    """F4: decisions of the whole int8 model on held-out samples."""
    form = next(form for form in subject.forms if form.name == WHOLE)
    made = run_litert(form.tflite, form.inputs, is_reference=False)
    x = subject.model.data.x_test[: form.num_real]
    output = form.graph.activations[form.graph.output]
    one, other = (dequantize_values(output, values[: form.num_real]).reshape(len(x), -1) for values in (form.judged, made))
    agreement = subject.model.entry.agreement(one, other, x)
    text = f"{agreement:.2%}, {largest_difference(made, form.judged)} LSB"
    return Finding("F4", subject.name, text, agreement >= AGREEMENT, -agreement)


def device_against_executor(subject: Subject) -> Finding:
    """F5: every int8 output of both forms."""
    worst = 0
    for form in subject.forms:
        try:
            made = run_device(form.tflite, form.inputs)
        except FedmoteError as error:
            return _unmeasured("F5", subject, f"{form.name}: {error}")
        worst = max(worst, largest_difference(made, run_int8(form.graph, form.inputs)))
    return Finding("F5", subject.name, f"{worst} LSB", worst == 0, worst)


def accuracy_kept(subject: Subject) -> Finding:
    """F6: metric and decisions of the int8 encoder with the float head, on held-out samples."""
    kept = subject.kept(subject.outcomes[0])
    drop = subject.float_score - kept.score
    holds = drop <= ACCURACY_DROP and kept.agreement >= AGREEMENT
    text = f"{subject.float_score:.2%} to {kept.score:.2%} ({subject.model.entry.metric}), agreement {kept.agreement:.2%}"
    return Finding("F6", subject.name, text, holds, max(drop / ACCURACY_DROP, (1 - kept.agreement) / (1 - AGREEMENT)))


def noise(subject: Subject) -> Finding:
    """F7: of the encoder's features on held-out samples, beside the peer's."""
    ours = sqnr_db(subject.exact_features, subject.kept(subject.outcomes[0]).features)
    depth = sum(
        op.kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED) for op in subject.forms[0].graph.ops
    )
    limit = DEEP_SQNR_DB if depth > DEEP_LAYERS else SQNR_DB
    text, distance = f"{ours:.1f} dB of {limit:.0f}", ours - limit
    peer = subject.outcome(AEQ)
    if peer is not None:
        theirs = sqnr_db(subject.exact_features, subject.kept(peer).features)
        text, distance = f"{text}, peer {theirs:.1f}", min(distance, ours - theirs + PEER_SQNR_DB)
    return Finding("F7", subject.name, text, distance >= 0, -distance)


def mobilenet_noise(subject: Subject) -> Finding:
    """The aim for MobileNetV1, whose 27 layers plain minima and maxima do not serve well."""
    if subject.name != MOBILENET:
        return _unmeasured("F7*", subject, f"for {MOBILENET} alone")
    ours = sqnr_db(subject.exact_features, subject.kept(subject.outcomes[0]).features)
    return Finding("F7*", subject.name, f"{ours:.1f} dB", ours >= SQNR_DB, -ours)


def independent_converter(subject: Subject) -> Finding:
    """F8: int8 features of litert-torch's file, where every activation has the scale that it has in ours.

    Ours is converted as the peer's is, for this line alone: true extremes, nothing equalised, nothing corrected. The limit is
    that of our form from the peer's own float32 numbers, where scales are the same to the last bit; `same_numbers.py` says what
    else differs between forms as they come, whose figures stand beside it.
    """
    peer = subject.outcome(AEQ)
    if peer is None:
        return _unmeasured("F8", subject, f"{AEQ} made no file")
    plain = convert_here(subject.model, PLAIN).package
    theirs = subject.content(peer)
    if not _is_tied(read_content(plain.encoder_tflite), theirs):
        return _unmeasured("F8", subject, "the scales of the two files are not the same")
    made, found = subject.micro(peer)[:NUM_COMPARED], []
    for graph, tflite in (from_numbers_of(subject, theirs), (plain.graph, plain.encoder_tflite)):
        x = subject.inputs_of(read_content(tflite), is_arranged=True)[:NUM_COMPARED]
        own = run_tflite_micro(tflite, x).reshape(made.shape)
        found.append((largest_difference(own, made), float((own != made).mean()), _other_weights(graph, peer.tflite)))
    tied, loose = (f"{difference} LSB, {share:.2%} of outputs{weights}" for difference, share, weights in found)
    difference, share, _ = found[0]
    return Finding("F8", subject.name, f"{tied}; as they come {loose}", difference <= 1 and share <= TIE_SHARE, share)


def sizes(subject: Subject) -> Finding:
    """F9: bytes of the encoder's file."""
    size, payload = len(subject.outcomes[0].tflite), payload_bytes(subject.forms[0].graph)
    ratio = size / payload
    text = f"{ratio:.2f} of {payload:,} B"
    holds = ratio <= PAYLOAD_RATIO or payload <= PAYLOAD_FLOOR
    peer = subject.outcome(AEQ)
    if peer is not None:
        text = f"{text}, {size / len(peer.tflite):.2f} of the peer's"
        holds &= size <= PEER_SIZE_RATIO * len(peer.tflite)
    return Finding("F9", subject.name, text, holds, ratio if payload > PAYLOAD_FLOOR else 0.0)


def seconds(subject: Subject) -> Finding:
    """F10: one conversion, warm, in its own process."""
    ours = subject.outcomes[0].seconds
    holds = ours <= SECONDS if subject.name == TIMED_MODEL else None
    return Finding("F10", subject.name, f"{ours:.2f} s, {len(subject.model.data.x_calibration)} samples", holds, ours)


def weight_push(subject: Subject) -> Finding:
    """F11: moved weights into the package, beside a conversion of the moved module with the same ranges and corrections."""
    package, board = subject.conversion.package, roomy_board()
    moved, recipe = _moved(subject.model.module), Recipe.of(package)
    anew = convert(moved, subject.model.data.x_calibration, [board], model_id=subject.name, recipe=recipe, version=1)
    times = []
    for _ in range(PUSHES):
        started = processor_seconds()
        pushed = push(package, anew.tensors, None, 1)
        times.append(1000 * (processor_seconds() - started))
    is_equal = pushed.to_bytes() == anew.package.to_bytes()
    is_length_kept = len(pushed.encoder_tflite) == len(package.encoder_tflite)
    spent = statistics.median(times)
    text = f"{spent:.1f} ms, length {'kept' if is_length_kept else 'changed'}, bytes {'equal' if is_equal else 'differ'}"
    return Finding("F11", subject.name, text, spent <= PUSH_MS and is_equal and is_length_kept, spent)


def determinism(subject: Subject) -> Finding:
    """F12: this process and the timed one; and calibration with NumPy 1, where its environment is there."""
    ours, package = subject.outcomes[0], subject.conversion.package
    is_equal = ours.tflite == package.encoder_tflite and ours.package == package.to_bytes()
    text, holds = f"two processes: {'equal' if is_equal else 'differ'}", is_equal
    if numpy_1().is_installed:
        other = _converted_with_numpy_1(subject)
        is_same = other == package.encoder_tflite
        text, holds = f"{text}; NumPy 1.26: {'equal' if is_same else 'differs'}", holds and is_same
    else:
        text = f"{text}; NumPy 1.26 not tried: {numpy_1().absence}"
    return Finding("F12", subject.name, text, holds, float(not holds))


def operators(subject: Subject) -> Finding:
    """F13: every operator is on the list, none moves or rescales inside an encoder, int8 in and out."""
    content = subject.content(subject.outcomes[0])
    strange = [name for name in content.operators if name not in set(OpKind) or name in ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE")]
    ends = [tensor.type for tensor in (content.input, content.output)]
    violations = [*strange, *(kind for kind in ends if kind != "INT8")]
    text = f"{len(violations)} violations{': ' if violations else ''}{', '.join(violations)}"
    return Finding("F13", subject.name, text, not violations, len(violations))


def arenas(subject: Subject) -> Finding:
    """F14: the smallest in which TensorFlow Lite Micro can allocate, on this 64-bit host."""
    peer = subject.outcome(AEQ)
    ours = tflite_micro_arena_bytes(subject.outcomes[0].tflite)
    if peer is None:
        return _unmeasured("F14", subject, f"{AEQ} made no file; ours takes {ours:,} B")
    theirs = tflite_micro_arena_bytes(peer.tflite)
    return Finding("F14", subject.name, f"{ours / theirs:.2f} ({ours:,} of {theirs:,} B)", ours <= theirs, ours / theirs)


def through_onnx(subject: Subject) -> Finding:
    """Int8 features of a model through its ONNX exports, which fold normalisations themselves: held-out samples."""
    if missing := exporters_missing():
        return _unmeasured("ONNX", subject, missing)
    expected = features_of(subject.conversion, subject)
    texts, holds, worst = [], True, 0.0
    for name, is_dynamo in (("default", True), ("TorchScript", False)):
        other = converted_through_onnx(subject, is_dynamo)
        if not has_same_operators(subject.conversion, other):
            return Finding("ONNX", subject.name, f"{name}: other operators", False, np.inf)
        made = features_of(other, subject)
        difference, share = largest_difference(made, expected), float((made != expected).mean())
        texts.append(f"{name} {difference} LSB, {share:.2%} of outputs")
        holds &= difference <= (0 if is_dynamo else 1) and share <= EXPORT_SHARE
        worst = max(worst, difference + share)
    return Finding("ONNX", subject.name, "; ".join(texts), holds, worst)


MEASURES = (
    Measure("F1", "integer executor against TFLM", "0 LSB", executor_against_micro),
    Measure("F2", "TFLM against tflite-runtime 2.14, reference", "0 LSB", micro_against_tflite_runtime),
    Measure("F3", "TFLM against LiteRT, reference", "0; with dense layers 2 LSB, 1 % of outputs", micro_against_litert_reference),
    Measure("F4", "TFLM against LiteRT, default: same decision", ">= 98 %", micro_against_litert),
    Measure("F5", "device's C against integer executor", "0 LSB", device_against_executor),
    Measure("F6", "accuracy drop of int8; same decision as float", "<= 1 point; >= 98 %", accuracy_kept),
    Measure("F7", "SQNR of the encoder", ">= 30 dB, 15 beyond 20 layers; >= peer - 2 dB", noise),
    Measure("F7*", f"SQNR of {MOBILENET}", ">= 30 dB", mobilenet_noise),
    Measure("F8", "independent converter, same weights and scales", "<= 1 LSB in <= 1 % of outputs", independent_converter),
    Measure("F9", "file of payload; of the peer's", "<= 1.35 beyond 20 kB; <= 0.9", sizes),
    Measure("F10", f"conversion of {TIMED_MODEL}, processor time", "<= 1 s", seconds),
    Measure("F11", "push of new weights", "<= 20 ms, same length, same bytes", weight_push),
    Measure("F12", "same weights and data, same bytes", "equal", determinism),
    Measure("F13", "operators of the list, int8 ends", "0 violations", operators),
    Measure("F14", "TFLM arena, of the peer's", "<= 1.0", arenas),
    Measure("ONNX", "torch against its exports: default; TorchScript", "0; <= 1 LSB in <= 1 % of outputs", through_onnx),
)


def worst_of(findings: Sequence[Finding]) -> Finding:
    """The finding that decides a line: what misses before what holds, what was measured before what was not."""
    order = {False: 2, True: 1, None: 0}
    return max(findings, key=lambda finding: (order[finding.holds], finding.rank))


def _unmeasured(number: str, subject: Subject, reason: str) -> Finding:
    return Finding(number, subject.name, reason, None)


def _largest(number: str, subject: Subject, run: Callable[[Form], NDArray[np.int8]]) -> Finding:
    """The largest difference from TensorFlow Lite Micro over both forms; none is allowed."""
    differences = [largest_difference(run(form), form.judged) for form in subject.forms]
    outputs = sum(form.judged.size for form in subject.forms)
    return Finding(
        number, subject.name, f"{max(differences)} LSB in {outputs:,} outputs", max(differences) == 0, max(differences)
    )


def _is_tied(ours: Content, theirs: Content) -> bool:
    """Whether the activations that have ranges of their own have the same scales, in order.

    Conversions round (max - min) / 255 at different places, which leaves the last bit of float32 open.
    """
    scales = [
        [float(tensor.scales[0]) if len(tensor.scales) else np.nan for tensor in activations_of(content)]
        for content in (ours, theirs)
    ]
    return len(scales[0]) == len(scales[1]) and bool(np.allclose(scales[0], scales[1], rtol=1e-6, atol=0))


def _peer_in_litert(subject: Subject) -> list[str]:
    """What LiteRT's reference kernels make of the peer's file, beside TensorFlow Lite Micro."""
    peer = subject.outcome(AEQ)
    if peer is None:
        return []
    x = subject.inputs(peer)[:NUM_REAL]
    made, expected = run_litert(peer.tflite, x, is_reference=True), run_tflite_micro(peer.tflite, x)
    return [f"the peer's file {largest_difference(made, expected)} LSB, {float((made != expected).mean()):.2%}"]


def _other_weights(ours: Graph, tflite: bytes) -> str:
    """How many int8 weights of a peer's file are not ours: one on the edge of rounding can move every output behind it."""
    try:
        theirs = tflite_reader.read(tflite, "the peer's file")
    except FedmoteError:
        return ""
    pairs = list(zip(_weights_of(ours), _weights_of(theirs), strict=False))
    if any(one.size != other.size for one, other in pairs):
        return ""
    count = sum(int((one != other).sum()) for one, other in pairs)
    return f", {count} of {sum(one.size for one, _ in pairs):,} weights differ"


def _weights_of(graph: Graph) -> list[NDArray[np.int8]]:
    """Int8 weights of each layer in order, output channels first: a convolution of one input channel is a depthwise one too."""
    return [
        np.moveaxis(np.asarray(op.weights, np.int8), 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0, 0).ravel()
        for op in graph.ops
        if op.weights is not None
    ]


def _moved(module: nn.Module) -> nn.Module:
    """The module as a round of training leaves it: every parameter a little beside where it was, by a seed."""
    moved = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
    return moved.eval()


def _converted_with_numpy_1(subject: Subject) -> bytes:
    """The encoder's file, calibrated and quantized in the environment with NumPy 1, from the captured template."""
    conversion, board = subject.conversion, roomy_board()
    captured = capture(subject.model.module, subject.model.data.x_test.shape[1:])
    template = run_passes(conversion.cut.encoder)
    layout = conversion.package.host.input_layout
    made = assemble(template, conversion.head, captured.tensors, conversion.ranges, [board], subject.name, 0, layout)
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as directory:
        names = ("captured.fmp", "checkpoint.safetensors", "x.npy", "encoder.tflite")
        package, checkpoint, samples, output = (Path(directory) / name for name in names)
        package.write_bytes(made[board.name].to_bytes())
        checkpoint.write_bytes(dump_safetensors(captured.tensors))
        np.save(samples, arranged(subject.model.data.x_calibration, layout))
        program = Path(__file__).with_name("numpy_1_worker.py")
        run_python(numpy_1().python, program, ["convert", package, checkpoint, samples, output], our_packages())
        return output.read_bytes()
