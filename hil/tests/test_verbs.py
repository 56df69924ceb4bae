# SPDX-License-Identifier: Apache-2.0
import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from fedmote.errors import ConfigError
from fedmote.private_files import write_private
from fedmote_hil.cli import build as build_verb
from fedmote_hil.cli import device as device_verb

from .rig import emulator_test, first_message, listener, small_package


def _options(verb, *arguments):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path):
    package = small_package(2, "posix")
    shape = package.graph.activations[package.graph.input].shape[1:]
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(6, *shape)).astype(np.float32), y=np.arange(6) % 3)
    (tmp_path / "m.fmp").write_bytes(package.to_bytes())
    write_private(tmp_path / "board-1.toml", 'id = "board-1"\nsite = "lab"\nusername = "board-1"\npassword = "secret"\n')
    return tmp_path


def _device_arguments(files, *more):
    return [
        "--board",
        "posix",
        "--id",
        "board-1",
        "--data",
        files / "data.npz",
        "--credentials",
        files / "board-1.toml",
        "--package",
        files / "m.fmp",
        *more,
    ]


def test_build_writes_the_program_and_one_json_object(tmp_path, capsys):
    assert build_verb.run(_options(build_verb, "--board", "posix", "-o", tmp_path / "device", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == (tmp_path / "device").stat().st_size
    helped = subprocess.run([tmp_path / "device", "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: fedmote-device")


@emulator_test
def test_build_of_a_raw_image_says_how_to_flash_it(tmp_path, capsys):
    assert build_verb.run(_options(build_verb, "--board", "stm32f405", "-o", tmp_path / "image.bin")) == 0
    assert re.search(r"openocd .*image\.bin 0x8000000 verify", capsys.readouterr().out)


def test_a_program_has_no_raw_image(tmp_path):
    with pytest.raises(ConfigError, match="no raw image"):
        build_verb.run(_options(build_verb, "--board", "posix", "-o", tmp_path / "image.bin"))


def test_the_device_of_the_verb_speaks_and_ends_when_it_is_interrupted(files):
    program = (
        "import argparse, sys; from fedmote_hil.cli import device; parser = argparse.ArgumentParser();"
        "device.add_arguments(parser); sys.exit(device.run(parser.parse_args(sys.argv[1:])))"
    )
    with listener() as server:
        serial = ["--serial", f"tcp://127.0.0.1:{server.getsockname()[1]}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, *(str(part) for part in _device_arguments(files, *serial))]
        process = subprocess.Popen(command, env=environment)
        connection, _ = server.accept()
        with contextlib.closing(connection):
            hello = first_message(connection)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert (hello["device"], hello["num_samples"]) == ("board-1", 6)
    assert hello["model_hash"] == small_package(2, "posix").hash


def test_credentials_of_another_device_are_refused(files):
    write_private(files / "board-1.toml", 'id = "board-2"\nsite = "lab"\nusername = "board-2"\npassword = "secret"\n')
    with pytest.raises(ConfigError, match="credentials of 'board-2', not of 'board-1'"):
        device_verb.run(_options(device_verb, *_device_arguments(files, "--serial", "pty")))


def test_keys_are_refused_on_a_virtual_board_that_cannot_count_its_boots(files):
    with (files / "board-1.toml").open("a") as file:
        file.write(f'key = "{bytes(32).hex()}"\n')
    arguments = _device_arguments(files, "--serial", "pty")
    arguments[1] = "lm3s6965"
    with pytest.raises(ConfigError, match="an emulated lm3s6965 has no memory that outlives a restart"):
        device_verb.run(_options(device_verb, *arguments))


def test_more_samples_than_the_board_takes_are_refused(files):
    np.savez(files / "data.npz", x=np.zeros((5000, 4), np.int8), y=np.zeros(5000, np.int64))
    options = _options(device_verb, *_device_arguments(files, "--serial", "pty"))
    options.package = None
    with pytest.raises(ConfigError, match="5000 samples, board posix takes 4096"):
        device_verb.run(options)
