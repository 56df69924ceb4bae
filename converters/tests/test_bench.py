# SPDX-License-Identifier: Apache-2.0
"""What `fedmote bench convert` says of a model, and when it says nothing."""

import argparse
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmote.errors import ConfigError, ConversionError, RigError
from fedmote.lab.models import digits_cnn
from fedmote.lab.zoo.data import Data
from fedmote.lab.zoo.zoo import ZOO, Entry, Model, Training, outputs_of
from fedmote_convert.bench import environments, fidelity, interpreters, measurement, recipes, report, subject
from fedmote_convert.bench.environments import Environment, added_bytes, run_python
from fedmote_convert.bench.fidelity import MEASURES, Finding, worst_of
from fedmote_convert.bench.files import payload_bytes, read_content
from fedmote_convert.bench.rows import Verdict, row_of, verdicts_of
from fedmote_convert.bench.same_numbers import activations_of, from_numbers_of
from fedmote_convert.bench.stacks import AEQ, FEDMOTE, Outcome
from fedmote_convert.bench.subjects import Kept, Subject, convert_here

ROW_KEYS = (
    *("model", "stack", "seconds", "install_bytes", "file_bytes", "accuracy_float", "accuracy_int8"),
    *("max_abs_diff_lsb", "extra_ops"),
)


@pytest.fixture(scope="module")
def measured(digits):
    """The digits' model, converted here; the timed conversion is this one too."""
    if missing := interpreters.oracles_missing():
        pytest.skip(missing)
    data = Data(digits.x, digits.y, digits.x, digits.x_test[:200], digits.y_test[:200], digits.x_test[200:])
    model = Model(Entry("digits_cnn", digits_cnn, lambda: data, Training(1)), digits.module, data, None)
    conversion = convert_here(model)
    outcome = Outcome(FEDMOTE, 0.1, conversion.package.encoder_tflite, True, 0.2, conversion.package.to_bytes())
    return Subject(model, conversion, (outcome,))


@pytest.fixture(scope="module")
def plain(measured):
    """The file of a conversion as the peer makes it."""
    return convert_here(measured.model, fidelity.PLAIN).package


def beside(measured, **changes):
    """The same with a peer that made our own file, or another."""
    ours = measured.outcomes[0]
    return replace(measured, outcomes=(ours, replace(ours, stack=AEQ, **changes)))


def options(*arguments):
    parser = argparse.ArgumentParser()
    subject.SUBJECT.add_arguments(parser)
    return parser.parse_args(arguments)


def test_a_row_has_every_figure_and_the_c_equals_tflite_micro(measured):
    row = row_of(measured, measured.outcomes[0], 1000)

    assert set(ROW_KEYS) <= row.keys()
    assert (row["seconds"], row["install_bytes"], row["file_bytes"]) == (0.1, 1000, len(measured.outcomes[0].tflite))
    assert row["max_abs_diff_lsb"] == 0
    assert row["extra_ops"] == {}
    assert row["accuracy_float"] > 0.9
    assert row["sqnr_db"] > 30


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.number)
def test_every_measure_finds_something_or_says_why_not(measured, plain, monkeypatch, measure):
    monkeypatch.setattr(fidelity, "numpy_1", lambda: Environment("absent", (), 1))

    finding = measure.find(beside(measured, tflite=plain.encoder_tflite))

    unmeasured = {"F2": "is not installed", "F7*": "for mobilenet_v1 alone", "F10": "0.10 s"}
    assert finding.number == measure.number
    if measure.number in unmeasured:
        assert finding.holds is None
        assert unmeasured[measure.number] in finding.measured
    elif measure.number == "F9":
        assert finding.holds is False  # a file as large as the peer's is not 0.9 of it
    elif measure.number == "F11":
        assert "length kept, bytes equal" in finding.measured  # its milliseconds are those of a loaded machine
    else:
        assert finding.holds, finding.measured


def test_a_file_with_one_other_weight_is_found_by_the_independent_converter(measured, plain):
    tflite = bytearray(plain.encoder_tflite)
    weights = plain.graph.ops[0].weights.tobytes()
    tflite[tflite.index(weights)] ^= 0x40

    finding = fidelity.independent_converter(beside(measured, tflite=bytes(tflite)))

    assert finding.holds is False
    assert finding.measured.count("1 of 8,136 weights differ") == 2


def test_weights_folded_in_the_peers_order_and_its_scales_leave_no_difference(measured, plain):
    """A file whose weights are another last bit's: our own order of folding is off, the peer's order is not."""
    content = read_content(plain.encoder_tflite)
    scales = [float(tensor.scales[0]) for tensor in activations_of(content)]

    graph, tflite = from_numbers_of(measured, content)

    again = [float(tensor.scales[0]) for tensor in activations_of(read_content(tflite))]
    assert again == scales
    state = {name: value.detach().numpy() for name, value in measured.model.module.state_dict().items()}
    op, quantized = plain.host.template.ops[0], graph.ops[0]
    norm = op.source.batch_norm[0]
    inverse = np.float32(1) / np.sqrt(state[norm.running_var] + np.float32(norm.eps))
    folded = (state[op.source.weight] * inverse[:, None, None, None]) * state[norm.weight][:, None, None, None]
    largest = np.abs(folded).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(quantized.weight_quantization.scale, (largest.astype(np.float64) / 127).astype(np.float32))


def test_a_difference_from_litert_names_its_default_kernels_and_the_peers_file(measured, monkeypatch):
    exact = {True: 3, False: 0}

    def run(tflite, x, is_reference):
        made = interpreters.run_tflite_micro(tflite, x)
        return np.where(made < 100, made + exact[is_reference], made - exact[is_reference])

    monkeypatch.setattr(fidelity, "run_litert", run)

    finding = fidelity.micro_against_litert_reference(beside(measured))

    assert finding.holds is False
    assert "encoder 3 LSB, 100.00% of outputs (LiteRT's default kernels 0 LSB, 0.00%)" in finding.measured
    assert finding.measured.endswith("the peer's file 3 LSB, 100.00%")


def test_an_export_whose_features_differ_misses(measured, monkeypatch):
    moved = copy.deepcopy(measured.model.module)
    with torch.no_grad():
        next(moved.parameters()).mul_(1.01)
    converted = convert_here(replace(measured.model, module=moved))
    monkeypatch.setattr(fidelity, "converted_through_onnx", lambda subject, is_dynamo: converted)

    assert fidelity.through_onnx(measured).holds is False


def test_recipes_are_compared_on_samples_that_judge_nothing(measured, monkeypatch):
    seen = []
    monkeypatch.setattr(recipes, "outputs_of", lambda module, x: seen.append(x) or outputs_of(module, x))

    row = recipes.recipe_row(measured.model)

    assert seen[0] is measured.model.data.x_choice
    assert row["sqnr_db"].keys() == recipes.RECIPES.keys()
    assert min(row["sqnr_db"].values()) > 30
    assert "digits_cnn" in recipes.recipe_text([row], ["model x: no data"])


def test_another_packages_bytes_are_found_by_determinism(measured):
    outcome = replace(measured.outcomes[0], package=b"other")

    assert fidelity.determinism(replace(measured, outcomes=(outcome,))).holds is False


def test_a_peer_whose_ends_are_not_int8_has_a_note_and_no_difference(measured, monkeypatch):
    content = read_content(measured.outcomes[0].tflite)
    monkeypatch.setattr(
        Subject, "content", lambda self, outcome: replace(content, output=replace(content.output, type="FLOAT32"))
    )

    row = row_of(measured, measured.outcomes[0], 0)

    assert row["max_abs_diff_lsb"] is None
    assert row["note"] == "its ends are not int8"


def test_what_the_c_refuses_is_told_with_its_reason(measured, monkeypatch):
    def refuse(tflite, x):
        raise ConversionError("no kernel for it")

    monkeypatch.setattr("fedmote_convert.bench.rows.run_device", refuse)

    row = row_of(measured, measured.outcomes[0], 0)

    assert row["max_abs_diff_lsb"] is None
    assert row["note"] == "the device's C cannot run it: no kernel for it"


@pytest.mark.parametrize(
    ("figure", "limit", "aim", "text"),
    [
        (0.1, 0.2, 0.1, "aim met"),
        (0.15, 0.2, 0.1, "met"),
        (0.2, 0.2, None, "met"),
        (0.21, 0.2, 0.1, "missed"),
        (1, 0, None, "missed"),
    ],
)
def test_a_verdict_compares_the_figure_with_bound_and_aim(figure, limit, aim, text):
    assert Verdict("m", "w", figure, limit, aim).text == text


def test_rows_of_ours_are_judged_beside_the_peers():
    ours = {"model": "m", "stack": FEDMOTE, "seconds": 1.0, "file_bytes": 90, "accuracy_float": 0.9, "accuracy_int8": 0.894}
    peer = {"model": "m", "stack": AEQ, "seconds": 4.0, "file_bytes": 100, "accuracy_float": 0.9, "accuracy_int8": 0.897}

    both = [{**row, "max_abs_diff_lsb": 0, "paired_error": 0.002} for row in (ours, peer)]
    verdicts = {one.what: one for one in verdicts_of(both)}

    assert {what: one.text for what, one in verdicts.items()} == {
        "drop of int8 against float": "missed",
        "C against TensorFlow Lite Micro, LSB": "met",
        "processor time, of the peer's": "missed",
        "file, of the peer's": "met",
        "int8 below the peer's": "missed",
    }
    assert verdicts["processor time, of the peer's"].measured == 0.25
    assert [what for what, one in verdicts.items() if one.error is not None] == ["int8 below the peer's"]


def test_the_error_of_a_difference_counts_samples_that_one_stack_alone_decides_rightly(measured, monkeypatch):
    subject = beside(measured)
    right = np.ones(200, bool), np.ones(200, bool)
    right[0][:3], right[1][1:6] = False, False
    kept = dict(zip((FEDMOTE, AEQ), right, strict=True))
    monkeypatch.setattr(Subject, "kept", lambda self, outcome: Kept(0.0, 0.0, measured.exact_features, kept[outcome.stack]))

    errors = [row_of(subject, outcome, 0)["paired_error"] for outcome in subject.outcomes]

    difference = (3 - 5) / 200
    assert errors[0] is None
    assert errors[1] == pytest.approx(np.sqrt((1 + 3) / 200 - difference**2) / np.sqrt(200))


def test_the_worst_finding_is_a_miss_before_anything_that_holds():
    held, missed, unknown = (
        Finding("F1", "a", "", True, 9.0),
        Finding("F1", "b", "", False, 1.0),
        Finding("F1", "c", "", None, 99),
    )

    assert worst_of([held, missed, unknown]) is missed
    assert worst_of([held, unknown]) is held


def test_the_report_has_a_line_for_each_measure_and_its_text_names_what_was_skipped(measured):
    row = row_of(measured, measured.outcomes[0], 1000)
    findings = [Finding(measure.number, "digits_cnn", "seen", True) for measure in MEASURES]

    content = report.report_of([row], findings, ["model x: no data"])

    assert list(content) == ["rows", "verdicts", "fidelity", "skipped"]
    assert [line["number"] for line in content["fidelity"]] == [measure.number for measure in MEASURES]
    assert json.loads(json.dumps(content)) == content
    text = report.text_of(content, is_detailed=True)
    assert "skipped: model x: no data" in text
    assert "independent converter" in text
    assert not report.is_missed(content)
    findings[0] = replace(findings[0], holds=False)
    assert report.is_missed(report.report_of([row], findings, []))


def test_the_smallest_arena_is_enough_and_sixteen_bytes_less_are_not(measured):
    from tflite_micro.python.tflite_micro import runtime

    tflite = measured.outcomes[0].tflite
    needed = interpreters.tflite_micro_arena_bytes(tflite)

    runtime.Interpreter.from_bytes(tflite, arena_size=needed)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(tflite, arena_size=needed - 16)


def test_the_payload_is_weights_biases_and_scales(measured):
    # 1 -> 8 -> 16 -> 48 channels, kernels of 3 x 3
    weights, channels = 9 * (8 + 8 * 16 + 16 * 48), 8 + 16 + 48

    assert payload_bytes(measured.conversion.package.graph) == weights + 8 * channels


def test_models_are_chosen_by_name_in_the_zoos_order():
    assert [entry.name for entry in measurement.entries("ds_cnn, digits_cnn")] == ["digits_cnn", "ds_cnn"]
    assert measurement.entries(None) is ZOO


@pytest.mark.parametrize("names", ["digits", "digits_cnn,none", ","])
def test_a_model_that_is_not_in_the_zoo_is_refused_with_those_that_are(names):
    with pytest.raises(ConfigError, match=r"--models .*expected some of digits_cnn, har_cnn, ds_cnn"):
        measurement.entries(names)


def test_models_without_data_are_skipped_by_name_and_nothing_left_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDMOTE_SHARED", str(tmp_path))

    with pytest.raises(ConfigError, match=r"nothing is left to measure; model har_cnn: there is no .*windows\.npz"):
        measurement.measure(options("--models", "har_cnn"))


def test_no_repeats_are_refused():
    if missing := interpreters.oracles_missing():
        pytest.skip(missing)
    with pytest.raises(ConfigError, match="--repeats 0: expected"):
        subject.SUBJECT.run(options("--repeats", "0"))


def test_a_stack_without_its_environment_is_skipped_with_how_to_get_it(monkeypatch, measured, tmp_path):
    monkeypatch.setattr(measurement, "litert_torch", lambda: Environment("absent", ("litert-torch==0",), 2200))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    skipped = []

    assert measurement._peers(measured.model, 1, tmp_path, skipped) == []
    assert "stack litert-torch: environment absent is not installed (litert-torch==0; 2200 MB)" in skipped[0]
    assert "--install-peers" in skipped[0]


def test_what_tflite_micro_cannot_run_is_skipped_with_its_model_and_stack(measured, monkeypatch):
    monkeypatch.setattr(interpreters, "_ARENA_BYTES", 3072)
    skipped = []

    subject = measurement._runnable(beside(measured), skipped)

    assert subject.outcomes == measured.outcomes
    assert skipped == [f"model digits_cnn by {AEQ}: TensorFlow Lite Micro cannot run the file: TFLM failed to allocate tensors"]


def test_an_environment_counts_as_installed_with_these_very_requirements_only(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = Environment("one", ("a==1",), 1)
    (tmp_path / "fedmote" / "one").mkdir(parents=True)
    (tmp_path / "fedmote" / "one" / "complete.json").write_text('["a==1"]')

    assert one.is_installed
    assert not replace(one, requirements=("a==2",)).is_installed
    assert not replace(one, name="two").is_installed


def test_a_failing_pip_is_told_by_its_last_line_and_leaves_no_finished_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environments.venv, "create", lambda *arguments, **options: None)
    environment = Environment("broken", ("a==1",), 1)
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text("#!/bin/sh\necho no such release >&2\nexit 1\n")
    environment.python.chmod(0o755)

    with pytest.raises(RigError, match="environment broken: pip failed: no such release"):
        environment.install(lambda line: None)
    assert not environment.is_installed


def test_a_program_that_fails_elsewhere_is_told_by_its_last_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("raise ValueError('it broke')")

    with pytest.raises(ConversionError, match=r"program\.py: ValueError: it broke"):
        run_python(environments.current_python(), program, [], ())


def test_a_program_elsewhere_finds_the_packages_that_it_is_given_and_nothing_beside_it(tmp_path):
    program = tmp_path / "program.py"
    (tmp_path / "neighbour.py").write_text("")
    program.write_text("import importlib.util as u, fedmote\nprint(fedmote.__file__, u.find_spec('neighbour'))")

    said = run_python(environments.current_python(), program, [], environments.our_packages()).split()

    assert "fedmote-bench-" in said[0]
    assert said[1] == "None"


def test_added_bytes_leave_out_what_is_there_anyway(tmp_path):
    (tmp_path / "more").write_bytes(bytes(1000))
    python = environments.current_python()

    plain = added_bytes(python, ("flatbuffers",))

    assert added_bytes(python, ("flatbuffers",), (tmp_path,)) == plain + 1000
    assert 1000 < plain < 1_000_000
    assert added_bytes(python, ("numpy",)) == 0
