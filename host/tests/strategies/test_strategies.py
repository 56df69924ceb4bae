# SPDX-License-Identifier: Apache-2.0
"""Presets fill four seams; what makes no sense is refused with the reason; updates are read strictly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.aggregation import Update, merge
from fedmote.config import CellConfig, PrivacyConfig, SecureSumConfig, StrategyConfig
from fedmote.errors import ConfigError, RemoteWireError, RoundError
from fedmote.package.graph import HeadLayer
from fedmote.strategies import MergeContext, ModelShape, Previous, cells_of, load_strategy
from fedmote.strategies.covered_mean import CoveredMean
from fedmote.strategies.f32 import Float32
from fedmote.tensors import dump_safetensors
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import LIMIT_BODY_FLOOR, Kind, Phase, Role, Status

PAIRED = cells_of((CellConfig("b", ("d2", "d1"), "p1"), CellConfig("a", (), "p2")))
ALONE = cells_of((CellConfig("a", ("d1",)),))
PARTNERS = cells_of((CellConfig("a", (), "p1"),))
MODEL = ModelShape(
    {"w": np.zeros((2, 2), np.float32), "h": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)},
    (HeadLayer("h", "b", 3, 2),),
    {"x": (-1.0, 1.0), "f": (0.0, 1.0)},
    "x",
)
CONTEXT = MergeContext(MODEL)


@pytest.mark.parametrize(
    ("changes", "cells", "reason"),
    [
        ({"uncovered": "zero"}, PAIRED, "pull the encoder towards zero"),
        ({}, PARTNERS, "without a single device"),
        ({"form": "simultaneous"}, ALONE, "no cell has a partner"),
        ({"is_sending_samples": True}, ALONE, "no cell has a partner to send them to"),
        ({"is_sending_samples": True, "beta": 0.0}, PAIRED, "no sample is ever selected to be sent"),
        ({"is_sending_samples": True, "max_send": 0}, PAIRED, "max_send = 0"),
        ({"gain": 0.0}, PAIRED, "gain = 0"),
        ({"ignore": "devices"}, ALONE, "nothing would ever be merged"),
        ({"ignore": "partners"}, ALONE, "leave it out"),
        ({"cells_per_round": 3}, PAIRED, "there are 2 cells"),
        ({"preset": "fedavg"}, ALONE, "no cell has a partner"),
        ({"preset": "fedavg", "form": "simultaneous"}, PAIRED, "belongs to preset"),
        ({"preset": "fedavg", "is_sending_samples": True}, PAIRED, "never get a plan"),
        ({"preset": "fedavg", "ignore": "devices"}, PAIRED, "partners alone"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(changes, cells, reason):
    with pytest.raises(ConfigError, match=reason):
        load_strategy(StrategyConfig(**changes), cells)


def test_sensible_combinations_are_taken():
    assert load_strategy(StrategyConfig(), PAIRED).name == "centaur/alternating"
    assert load_strategy(StrategyConfig(form="simultaneous", is_sending_samples=True), PAIRED).name == "centaur/simultaneous"
    assert load_strategy(StrategyConfig(uncovered="old"), ALONE)
    assert load_strategy(StrategyConfig(preset="fedavg", uncovered="zero"), PAIRED).name == "fedavg"


def test_partner_round_is_restricted_to_the_cells_of_the_device_round():
    plan = load_strategy(StrategyConfig(), PAIRED).plan
    previous = Previous(Phase.DEVICE, frozenset({"b"}), is_committed=True)
    assert plan.next_phase(PAIRED, previous) is Phase.PARTNER
    assert [cell.name for cell in plan.population(PAIRED, previous)] == ["b"]
    assert [cell.name for cell in plan.population(PAIRED, None)] == ["b"]  # cell a has no device


def test_plan_with_published_numbers_fits_the_smallest_body():
    training = load_strategy(StrategyConfig(), PAIRED).plan.training(Role.DEVICE)
    assert training.fields()["alpha_milli"] == 5000
    assert training.fields()["momentum_micro"] == 900_000
    assert "gamma_milli" not in training.fields()
    fields = {
        "run": bytes(8), "round": 1000, "phase": 1, "version": 1000, "remaining_ms": 600_000, "model_hash": bytes(32),
        "model_handle": 2**32 - 1, "model_size": 50_000, "seed": 2**32 - 1, "attempt": 3,
    }  # fmt: skip
    assert len(encode(Message(Kind.PLAN, fields | training.fields()))) <= LIMIT_BODY_FLOOR


def test_head_update_of_a_device_is_turned_into_the_checkpoints_order():
    # Two channels of 1 x 3 behind a flatten: the device has the columns channels last, the checkpoint channels first.
    layer = HeadLayer("h", "b", 6, 1, chw=(2, 1, 3))
    model = ModelShape({"h": np.zeros((1, 6), np.float32), "b": np.zeros(1, np.float32)}, (layer,), {})
    blob = encode_head_update(np.array([0, 10, 1, 11, 2, 12, 7], np.float32))
    decoded = Float32().decode(Role.DEVICE, blob, model).tensors
    np.testing.assert_array_equal(decoded["h"], [[0, 1, 2, 10, 11, 12]])
    np.testing.assert_array_equal(decoded["b"], [7])


def test_honest_updates_fit_their_bound_and_are_read():
    codec = Float32()
    head = encode_head_update(np.ones(8, np.float32))
    assert len(head) <= codec.max_bytes(Role.DEVICE, MODEL)
    assert set(codec.decode(Role.DEVICE, head, MODEL).tensors) == {"h", "b"}
    full = dump_safetensors(
        {**MODEL.tensors, "range/f": np.array([0, 3], np.float32), "range/x": np.array([-5, 5], np.float32)}, {"note": "x"}
    )
    assert len(full) <= codec.max_bytes(Role.PARTNER, MODEL)
    decoded = codec.decode(Role.PARTNER, full, MODEL)
    assert decoded.ranges == {"f": (0.0, 3.0)}  # the input's range is frozen
    assert set(decoded.tensors) == {"w", "h", "b"}


@settings(deadline=None, max_examples=300)
@given(blob=st.binary(max_size=200), role=st.sampled_from(Role))
def test_any_bytes_are_read_or_refused_with_a_status(blob, role):
    try:
        Float32().decode(role, blob, MODEL)
    except RemoteWireError as error:
        assert isinstance(error.status, Status)


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_of_a_partner_update_is_read_or_refused(position, value):
    blob = bytearray(dump_safetensors({**MODEL.tensors, "range/f": np.array([0, 3], np.float32)}))
    blob[position % len(blob)] = value
    try:
        decoded = Float32().decode(Role.PARTNER, bytes(blob), MODEL)
        merge(MODEL.tensors, [Update("p", 1, decoded.tensors)])
    except RemoteWireError as error:
        assert isinstance(error.status, Status)


def test_server_learning_rate_scales_steps_and_not_statistics():
    old = {"w": np.array([1.0], np.float32), "norm.running_var": np.array([1.0], np.float32)}
    update = Update("p", 1, {"w": np.array([2.0], np.float32), "norm.running_var": np.array([-0.9], np.float32)})
    merged = CoveredMean(server_learning_rate=2.0).merge(old, {}, lambda: iter([(Role.PARTNER, update, {})]), CONTEXT).tensors
    assert merged["w"][0] == 5.0
    assert merged["norm.running_var"][0] == pytest.approx(0.1)


def test_server_learning_rate_that_overflows_is_refused():
    old = {"w": np.array([3e38], np.float32)}
    update = Update("p", 1, {"w": np.array([1e37], np.float32)})
    with pytest.raises(RoundError, match="not finite"):
        CoveredMean(server_learning_rate=100.0).merge(old, {}, lambda: iter([(Role.PARTNER, update, {})]), CONTEXT)


# ---- masked sums ----------------------------------------------------------------------------------------------------

SECURE = SecureSumConfig("street", 0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aggregation": "clipped_mean"}, "members cut their own updates"),
        ({"aggregation": "multi_krum"}, "no single one can be judged"),
        ({"privacy": PrivacyConfig(1.0, 1.0)}, "choose one of both"),
        ({"cells_per_round": 1}, "whose neighbours were not drawn"),
        ({"preset": "fedavg"}, "in this run none counts"),
        ({"ignore": "devices"}, "in this run none counts"),
    ],
)
def test_masked_sums_beside_what_makes_no_sense_are_refused_with_the_reason(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        load_strategy(StrategyConfig(**({"secure_sum": SECURE, "aggregation": "mean"} | changes)), PAIRED)


def test_masked_sums_are_taken_beside_samples_partners_and_any_form():
    for changes in ({"is_sending_samples": True}, {"form": "simultaneous"}, {"weights": "one"}, {"trained_layers": 1}):
        assert load_strategy(StrategyConfig(secure_sum=SECURE, aggregation="mean", **changes), PAIRED)


def test_a_mean_of_members_counts_for_all_of_them_where_each_counts_one():
    old = {"h": np.zeros(1, np.float32)}
    updates = [
        Update("a+8", 900, {"h": np.full(1, 1.0, np.float32)}, num_members=9),
        Update("b", 1, {"h": np.zeros(1, np.float32)}),
    ]
    assert merge(old, updates, weights="one")["h"][0] == pytest.approx(0.9)
    assert merge(old, updates)["h"][0] == pytest.approx(900 / 901)
