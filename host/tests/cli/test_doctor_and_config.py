# SPDX-License-Identifier: Apache-2.0
"""`fedmote doctor` and `fedmote config`."""

import dataclasses
import json
from pathlib import Path

import pytest

from fedmote.cli import config, doctor, main
from fedmote.private_files import write_private

COORDINATOR = """
listen = "tcp://127.0.0.1:0"
[run]
site = "lab"
name = "one"
state_directory = "state"
partition_directory = "model"
[[cells]]
name = "a"
devices = ["device-a"]
"""


def test_doctor_says_everything_as_one_json_object(capsys):
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in found["checks"]}
    assert {"python", "numpy", "torch", "onnx", "mosquitto", "qemu-system-arm", "arm-none-eabi-gcc", "cmake", "ninja"} <= names
    assert found["is_complete"] == all(check["is_present"] for check in found["checks"])
    assert code == (0 if found["is_complete"] else 1)


def test_what_is_missing_has_a_remedy_and_a_use(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor, "find_mosquitto", lambda: None)
    monkeypatch.setattr(doctor, "_TOOLS", (doctor._Tool("arm-none-eabi-gcc", "--version", ("board",), "apt install it"),))
    assert main(["doctor", "--json"]) == 1
    missing = [check for check in json.loads(capsys.readouterr().out)["checks"] if not check["is_present"]]
    assert [check["name"] for check in missing] == ["arm-none-eabi-gcc"]
    assert missing[0]["remedy"] == "apt install it"
    assert missing[0]["needed_for"] == ["board"]


def test_what_is_missing_for_another_use_does_not_matter(monkeypatch):
    monkeypatch.setattr(doctor, "_TOOLS", (doctor._Tool("no-such-tool", "--version", ("board",), "get it"),))
    assert main(["doctor", "--for", "board"]) == 1
    assert main(["doctor", "--for", "partner"]) == 0


def test_every_use_that_a_check_names_is_known():
    assert {use for check in doctor.examine() for use in check.needed_for} <= doctor.USES.keys()


def test_config_show_names_the_origin_of_every_value(tmp_path, monkeypatch, capsys):
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR)
    monkeypatch.setenv("FEDMOTE_CONFIG__RUN__SEED", "5")
    assert main(["config", "show", str(path), "--set", "run.rounds=7", "--json"]) == 0
    values = {one["key"]: one for one in json.loads(capsys.readouterr().out)["values"]}
    assert (values["run.site"]["origin"], values["run.site"]["value"]) == ("file", '"lab"')
    assert (values["run.rounds"]["origin"], values["run.rounds"]["value"]) == ("--set", "7")
    assert (values["run.seed"]["origin"], values["run.seed"]["value"]) == ("environment", "5")
    assert values["strategy.alpha"]["origin"] == "default"


def test_config_show_prints_one_line_for_each_value(tmp_path, capsys):
    path = tmp_path / "coordinator.toml"
    path.write_text(COORDINATOR)
    assert main(["config", "show", str(path)]) == 0
    assert any(line.startswith('run.site = "lab"') and line.endswith("# file") for line in capsys.readouterr().out.splitlines())


def test_secrets_are_not_shown(tmp_path, capsys):
    path = tmp_path / "device.toml"
    write_private(path, 'id = "device-a"\nsite = "lab"\nusername = "device-a"\npassword = "hush"\n')
    assert main(["config", "show", str(path)]) == 0
    assert "hush" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "word"),
    [("rounds = 0", "rounds"), ("colour = 3", "colour"), ('site = "A B"', "site")],
    ids=["range", "unknown", "form"],
)
def test_config_check_refuses_and_names_the_key(tmp_path, capsys, line, word):
    path = tmp_path / "coordinator.toml"
    text = COORDINATOR.replace('site = "lab"\n', "") if word == "site" else COORDINATOR
    path.write_text(text.replace("[run]\n", f"[run]\n{line}\n"))
    assert main(["config", "check", str(path)]) == 2
    assert word in capsys.readouterr().err


def test_a_file_of_no_known_kind_is_refused(tmp_path, capsys):
    path = tmp_path / "other.toml"
    path.write_text("a = 1\n")
    assert main(["config", "check", str(path)]) == 2
    assert "--kind" in capsys.readouterr().err
    assert config.kind_of.__doc__


@pytest.mark.parametrize(
    ("words", "is_present"), [("mosquitto version 2.0.11", True), ("mosquitto version 1.6.9", False), ("", False)]
)
def test_a_mosquitto_that_is_too_old_is_a_finding(monkeypatch, words, is_present):
    monkeypatch.setattr(doctor, "_first_line", lambda command: words)
    tool = next(one for one in doctor._TOOLS if one.name == "mosquitto")
    monkeypatch.setattr(doctor, "_TOOLS", (dataclasses.replace(tool, find=lambda: Path("/usr/sbin/mosquitto")),))
    check = next(one for one in doctor.examine() if one.name == "mosquitto")
    assert check.is_present == is_present
    assert is_present or "2.0 or newer" in check.remedy
