# SPDX-License-Identifier: Apache-2.0
"""The demonstration's result, and the demonstration itself with one round."""

import json
import tomllib

import pytest

from fedmote.cli import main
from fedmote.config import CoordinatorConfig, load
from fedmote.config.write import write_toml
from fedmote.errors import FedmoteError
from fedmote.lab.demo.fleet import Fleet
from fedmote.lab.demo.report import SeedResult, over_seeds, samples_bytes, table
from fedmote.lab.demo.settings import DemoSettings, settings_for


def seed_result(seed, final, devices, partners, pooled):
    return SeedResult(seed, {"accuracy": final}, {"devices_only": [devices], "partners_only": [partners], "pooled": [pooled]})


def test_gains_over_baselines_are_paired_by_seed():
    found = over_seeds([seed_result(0, 0.9, 0.8, 0.7, 1.0), seed_result(1, 0.8, 0.6, 0.75, 1.0)])
    assert found["strategy"]["mean"] == pytest.approx(0.85)
    assert found["devices_only"]["gain_mean"] == pytest.approx(0.15)
    assert found["devices_only"]["gain_least"] == pytest.approx(0.1)
    assert found["partners_only"]["gain_least"] == pytest.approx(0.05)
    assert found["pooled"]["gain_least"] == pytest.approx(-0.2)


def test_nothing_selected_is_nothing_sent():
    assert samples_bytes(0, 64) == 0
    assert samples_bytes(10, 64) > 10 * 64


def test_tables_are_aligned():
    lines = table(("a", "b"), [("long word", "1"), ("x", "1000")]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_written_configurations_are_read_back(tmp_path):
    tables = {"listen": "tcp://127.0.0.1:1", "run": {"name": 'a "b"', "n": 3}, "cells": [{"devices": ["x"]}, {"devices": ["y"]}]}
    write_toml(tmp_path / "some.toml", tables)
    assert tomllib.loads((tmp_path / "some.toml").read_text()) == tables


def test_both_tiers_and_all_baselines_share_the_settings():
    assert settings_for(False, "simultaneous") == DemoSettings()
    assert settings_for(True, "alternating").federation.form == "alternating"


def test_a_failing_command_is_quoted_with_its_exit_code(tmp_path):
    with Fleet(tmp_path) as fleet, pytest.raises(FedmoteError, match=r"no-such\.toml") as caught:
        fleet.run("serve", 60.0, "serve", tmp_path / "no-such.toml")
    assert caught.value.exit_code == 2


def test_the_demonstration_runs_on_what_this_machine_has_and_keeps_its_contract(tmp_path, capsys):
    assert main(["demo", "--rounds", "1", "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    result = json.loads(lines[-1])
    assert len(lines) == 1
    assert [one["round"] for one in result["rounds"]] == [1]
    assert result["rounds"][0]["reported"] == result["rounds"][0]["expected"] == 5
    assert result["rounds"][0].keys() == {"round", "phase", "accuracy", "seconds", "reported", "expected"}
    assert result["baselines"].keys() == {"devices_only", "partners_only", "pooled"}
    keys = {"id", "board", "link", "arena_bytes", "flash_bytes", "discarded", "trained", "sent", "bytes_up", "bytes_down"}
    assert [one.keys() for one in result["devices"]] == [keys] * 3
    sent = {one["id"]: one["sent"] for one in result["devices"]}
    assert sent["device-a"] > 0
    assert sent["device-b"] > 0
    assert sent["device-c"] == 0  # it has no partner
    assert all(one["trained"] > 0 and one["arena_bytes"] > 0 for one in result["devices"])
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy on the test set" in captured.err
    load(CoordinatorConfig, tmp_path / "out" / "run" / "coordinator.toml")
