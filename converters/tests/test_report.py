# SPDX-License-Identifier: Apache-2.0
"""What a conversion tells: figures of the report, the page for a browser, the plot."""

import html.parser
import json
import re
import struct

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.execute import run_float, run_int8
from fedmote.package.file import Package
from fedmote.package.fold import bind
from fedmote.package.importer import cut_graph
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote.wire.schema import Section
from fedmote_convert import output, pareto
from fedmote_convert.calibration import Recipe
from fedmote_convert.output import write
from fedmote_convert.tiers import convert_tiers

BOARDS = ("posix", "stm32f405")


@pytest.fixture(scope="module")
def result(digits):
    x, y = np.concatenate([digits.x, digits.x_test[:200]]), np.concatenate([digits.y, digits.y_test[:200]])
    boards = [Board.load(name) for name in BOARDS]
    return convert_tiers(digits.module, x, boards, model_id="digits_cnn", y=y, cut="last")


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "out"
    return write(result, directory), directory


def test_errors_of_operators_are_those_behind_each_of_them(result, written):
    report, _ = written
    conversion = result.tiers[0].conversion
    exact = bind(conversion.template, conversion.tensors)
    x = result.samples.arranged[::2]  # 256 samples at most are looked at
    for one in report["encoder"]["operators"]:
        truth = run_float(cut_graph(exact, one["output"]), x).astype(np.float64)
        graph = cut_graph(quantize(exact, conversion.ranges), one["output"])
        rounded = dequantize_values(graph.activations[graph.output], run_int8(graph, quantize_input(graph, x)))
        error = truth - rounded
        # Both are differences of float32 values, whose last bit depends on how many samples are computed at once.
        last_bit = float(np.spacing(np.float32(np.abs(truth).max())))
        assert one["largest_error"] == pytest.approx(np.abs(error).max(), rel=0, abs=last_bit)
        assert one["sqnr_db"] == pytest.approx(10 * np.log10(np.square(truth).sum() / np.square(error).sum()), rel=1e-6)


def test_costs_of_operators_add_up_to_those_of_the_encoder_and_its_package(result, written):
    report, directory = written
    operators = report["encoder"]["operators"]
    package = Package.read(directory / "digits_cnn-posix.fmp")

    assert sum(one["macs"] for one in operators) == package.header.macs
    weights = {"conv1": 8 * 9, "conv2": 8 * 16 * 9, "conv3": 16 * 48 * 9}
    assert {one["name"]: one["weight_bytes"] for one in operators if one["weight_bytes"]} == weights
    assert sum(report["sections"]["posix"].values()) == len(package.device_form())
    assert report["sections"]["posix"]["weights"] == len(package.sections[Section.WEIGHTS])
    for board in BOARDS:
        counts = [one["instructions"][board] for one in operators]
        total = report["boards"][board]["instructions"]
        assert counts == [None] * len(operators) if total is None else 0 < total - sum(counts) < 1000


def test_the_arena_map_holds_every_activation_inside_the_arena(written):
    arena = written[0]["arena"]

    assert arena["bytes"] == written[0]["encoder"]["arena_bytes"] >= arena["lower_bound_bytes"]
    assert all(box["offset"] + box["bytes"] <= arena["bytes"] for box in arena["activations"])
    assert max(box["offset"] + box["bytes"] for box in arena["activations"]) == arena["bytes"]


def test_confusion_counts_every_judged_sample_once_and_its_diagonal_is_the_accuracy(written):
    report, _ = written
    counts = np.array(report["confusion"])

    assert counts.sum() == report["quality"]["samples"] == 400
    assert np.trace(counts) / counts.sum() == report["quality"]["accuracy_int8"]


class _Reader(html.parser.HTMLParser):
    """Tags that are open, and all that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "line", "rect", "circle", "br") or self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path):
    reader = _Reader()
    text = path.read_text(encoding="utf-8")
    reader.feed(text)
    assert reader.open == []
    return reader, text


def test_the_page_is_whole_without_scripts_or_anything_from_elsewhere(written):
    reader, text = read(written[1] / "report.html")

    assert "script" not in reader.tags
    assert reader.addresses == []
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert {"svg", "table"} <= reader.tags


def test_the_page_shows_the_figures_of_the_report(written):
    report, directory = written
    _, text = read(directory / "report.html")

    for one in report["encoder"]["operators"]:
        assert one["name"] in text
        assert f"{one['macs']:,}" in text
    for board, needs in report["boards"].items():
        assert board in text
        assert f"{needs['slot_bytes']:,}" in text
        assert f"{needs['arena_bytes']:,}" in text
    assert f"{report['quality']['accuracy_int8']:.1%}" in text


def test_a_budget_of_weights_keeps_the_last_cut_and_shows_what_four_bits_cost(digits, tmp_path):
    said = []
    recipe = Recipe(weight_budget_bytes=6000)
    made = convert_tiers(
        digits.module, digits.x, [Board.load("posix")], model_id="d", y=digits.y, recipe=recipe, progress=said.append
    )
    report = write(made, tmp_path / "out")

    assert any("cut last instead of auto" in line for line in said)
    assert [form["form"] for form in report["forms"]] == ["flatten"]
    assert report["forms"][0]["boards"]["posix"]["slot_bytes"] == report["boards"]["posix"]["slot_bytes"]
    assert {layer["bits"] for layer in report["sensitivities"]} == {4, 8}
    assert "Bits of the weights" in read(tmp_path / "out" / "report.html")[1]


def test_names_in_the_page_are_text_whatever_they_are(digits, tmp_path):
    made = convert_tiers(digits.module, digits.x, [Board.load("posix")], model_id="<b>&x", cut="last")
    write(made, tmp_path / "out")

    assert "<h1>&lt;b&gt;&amp;x</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_the_plot_is_drawn_of_forms_that_were_judged(digits, tmp_path):
    pytest.importorskip("matplotlib")
    made = convert_tiers(digits.module, digits.x, [Board.load("posix")], model_id="d", y=digits.y)
    report = write(made, tmp_path / "one")
    write(made, tmp_path / "two")
    image = (tmp_path / "one" / "pareto.png").read_bytes()

    assert struct.unpack(">II", image[16:24]) == (1200, 340)
    assert image == (tmp_path / "two" / "pareto.png").read_bytes()
    panels = pareto.panels_of(report)
    assert [panel.cost.split()[0] for panel in panels] == ["package", "arena,", "MACs"]
    assert all(len(panel.points) == len(report["forms"]) for panel in panels)
    chosen = [point.name for panel in panels for point in panel.points if point.is_chosen]
    assert chosen == [report["boards"]["posix"]["form"]] * 3


def test_without_labels_or_matplotlib_there_is_no_plot(digits, tmp_path, monkeypatch):
    made = convert_tiers(digits.module, digits.x, [Board.load("posix")], model_id="d", y=digits.y)
    unlabelled = convert_tiers(digits.module, digits.x, [Board.load("posix")], model_id="d")

    write(made, tmp_path / "out")
    assert (tmp_path / "out" / "pareto.png").exists()
    assert not output.is_plotted(write(unlabelled, tmp_path / "out"))
    assert not (tmp_path / "out" / "pareto.png").exists()

    monkeypatch.setattr(pareto, "has_matplotlib", lambda: False)
    assert output.is_plotted(write(made, tmp_path / "without"))
    assert not (tmp_path / "without" / "pareto.png").exists()


def test_the_report_is_json_whose_pareto_names_are_forms(written):
    report, directory = written
    names = {form["form"] for form in report["forms"]}

    assert json.loads((directory / "report.json").read_text()) == report
    for board in BOARDS:
        assert set(report["pareto"][board]) <= names
        assert report["boards"][board]["form"] in names
