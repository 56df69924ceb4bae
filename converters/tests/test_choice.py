# SPDX-License-Identifier: Apache-2.0
"""Which of several forms a board gets."""

from dataclasses import replace

import numpy as np
import pytest

from fedmote.errors import ConversionError, DoesNotFitError
from fedmote.package.budget import Cost
from fedmote.package.graph import Activations, Graph
from fedmote_convert.choice import LEAST_HELD_OUT, choose, pareto
from fedmote_convert.cut import Cut
from fedmote_convert.forms import Form
from fedmote_convert.measure import Measured, Needs

BOARD = "board"
ENCODER = Graph("x", "x", {"x": Activations("x", (1, 2))})


def measured(name, hits, slot=100, arena=100, macs=1000, *, instructions=None, count=200, is_early=True, run_arena=50, **needs):
    """A form that classifies the first `hits` of `count` samples; budgets are 1000 bytes each."""
    cost = Cost(BOARD, slot, 1000, arena, 1000, 1, 0, run_arena, 1000, slot, 1000)
    form = Form(Cut(ENCODER, (), 2, name, "", ()), ENCODER, name, name, is_early=is_early)
    correct = None if hits is None else np.arange(count) < hits
    fields = {"missing": (), "has_device": True} | needs
    return Measured(form, macs, 0, 2, 8, {BOARD: Needs(cost, instructions, None, **fields)}, None, None, correct)


def chosen(*forms):
    choice = choose(forms, BOARD)
    return choice.measured.form.name, choice.trains


def test_the_most_accurate_form_that_fits_is_chosen():
    assert chosen(measured("low", 150), measured("high", 190), measured("large", 199, slot=1001)) == ("high", True)


def test_of_forms_that_cannot_be_told_apart_the_cheapest_is_chosen():
    # One hit more, and none less, is one standard error of the difference; two more are beyond it.
    assert chosen(measured("best", 181, macs=900), measured("cheap", 180, macs=10)) == ("cheap", True)
    assert chosen(measured("best", 182, macs=900), measured("cheap", 180, macs=10)) == ("best", True)


def test_pairs_count_not_totals():
    best, other = measured("best", 150, macs=900), measured("other", 148, macs=10)
    swapped = replace(other, correct=np.arange(200) >= 52)

    assert chosen(best, swapped) == ("other", True)


def test_predicted_instructions_come_before_macs_where_there_are_some():
    assert chosen(measured("a", 180, macs=10, instructions=900), measured("b", 180, macs=90, instructions=800)) == ("b", True)


def test_at_equal_costs_the_model_keeps_its_own_head():
    assert chosen(measured("early", 180), measured("own", 180, is_early=False)) == ("own", True)


@pytest.mark.parametrize("hits, count", [(None, 0), (40, LEAST_HELD_OUT - 1)])
def test_without_labels_enough_the_model_keeps_its_own_head_at_the_last_edge_that_fits(hits, count):
    forms = [
        measured("two layers", hits, count=count, is_early=False),
        measured("early", hits, count=count),
        measured("last", hits, count=count, is_early=False),
    ]

    assert chosen(*forms) == ("last", True)
    assert chosen(*forms[:2], measured("last", hits, count=count, is_early=False, slot=2000)) == ("two layers", True)


def test_a_board_that_can_train_nothing_gets_the_best_that_it_runs():
    assert chosen(measured("one", 150, arena=2000), measured("two", 180, arena=3000)) == ("two", False)
    assert chosen(measured("one", 150, has_device=False)) == ("one", False)
    assert chosen(measured("one", 150, missing=("mean",))) == ("one", False)


def test_a_board_that_can_run_nothing_is_refused_with_the_fewest_bytes_that_it_lacks():
    with pytest.raises(DoesNotFitError) as caught:
        choose([measured("one", 150, slot=1500, run_arena=2000), measured("two", 180, slot=1200, run_arena=2000)], BOARD)

    assert (caught.value.what, caught.value.needed, caught.value.available) == ("slot", 1200, 1000)


def test_a_board_without_room_to_run_and_without_device_program_is_refused_with_the_reason():
    with pytest.raises(ConversionError, match="board board: no device program"):
        choose([measured("one", 150, has_device=False, run_arena=2000)], BOARD)


def test_the_pareto_front_holds_what_no_other_form_beats():
    forms = [
        measured("dear and good", 190, slot=900, macs=900),
        measured("cheap and bad", 120, slot=100, macs=100),
        measured("dear and bad", 120, slot=900, macs=900),
        measured("does not fit", 199, slot=2000, run_arena=2000),
    ]

    assert [one.form.name for one in pareto(forms, BOARD)] == ["dear and good", "cheap and bad"]
