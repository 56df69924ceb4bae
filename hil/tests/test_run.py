# SPDX-License-Identifier: Apache-2.0
import argparse
import dataclasses
import json

import numpy as np
import pytest

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError, PackageError
from fedmote.package.boards import Board, Region
from fedmote.package.budget import run_arena_bytes
from fedmote.package.execute import run_int8
from fedmote.package.specimen import random_samples
from fedmote.wire.schema import Status
from fedmote_hil import run as run_module
from fedmote_hil.cli import run as run_verb
from fedmote_hil.run import run_many_on_board, run_on_board

from .rig import BOARDS, EMULATED_BOARDS, emulator_test, small_package


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("seed", range(6))
def test_features_on_a_board_equal_those_of_the_host_in_every_byte(board, seed):
    package = small_package(seed, board)
    x = random_samples(package.graph, 7, seed)
    features = run_on_board(board, package.to_bytes(), x)
    assert features.dtype == np.int8
    assert np.array_equal(features, run_int8(package.graph, x).reshape(7, -1))


@pytest.mark.parametrize("board", BOARDS)
def test_logits_on_a_board_equal_the_float_head_on_its_features(board):
    package = small_package(4, board)
    x = random_samples(package.graph, 7, 4)
    logits = run_on_board(board, package.device_form(), x, logits=True)
    header = package.header
    features = run_int8(package.graph, x).reshape(7, -1).astype(np.float64)
    weights, bias = package.head[0].weights, package.head[0].bias
    expected = (features - header.feature_zero_point) * header.feature_scale @ weights.T + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("board", [*BOARDS, *EMULATED_BOARDS])
def test_many_packages_each_over_its_own_samples_are_run_in_one_start(board, monkeypatch):
    starts = []
    for name in ("_run_process", "_run_emulated"):
        run = getattr(run_module, name)
        monkeypatch.setattr(run_module, name, lambda *arguments, run=run: starts.append(arguments) or run(*arguments))
    packages = [small_package(seed, board) for seed in range(8)]
    samples = [random_samples(package.graph, seed + 1, seed) for seed, package in enumerate(packages)]
    results = run_many_on_board(board, [(package.to_bytes(), x) for package, x in zip(packages, samples, strict=True)])
    assert len(starts) == 1
    for package, x, features in zip(packages, samples, results, strict=True):
        assert features.dtype == np.int8
        assert np.array_equal(features, run_int8(package.graph, x).reshape(len(x), -1))


@emulator_test
def test_packages_and_samples_beyond_the_regions_are_run_in_several_starts():
    board = Board.load("mps2-m3")
    small = dataclasses.replace(
        board, regions=board.regions | {"package": Region(0x21000000, 9000), "samples": Region(0x21800000, 1400)}
    )
    packages = [small_package(seed, board.name) for seed in range(4)]
    samples = [random_samples(package.graph, 20, seed) for seed, package in enumerate(packages)]
    jobs = [run_module._job(small, package, x, False) for package, x in zip(packages, samples, strict=True)]
    starts = list(run_module._starts(small, jobs))
    assert len(starts) > 4
    assert all(sum(len(job.package) for _, job in start) <= 9000 for start in starts)
    assert all(sum(len(run_module._padded_samples(job)) for _, job in start) <= 1400 for start in starts)
    for number, job in enumerate(jobs):
        parts = [part.samples for start in starts for index, part in start if index == number]
        assert np.array_equal(np.concatenate(parts), job.samples)
    results = run_module.run_jobs(small, jobs)
    for package, x, result in zip(packages, samples, results, strict=True):
        assert np.array_equal(result[:, : package.features].view(np.int8), run_int8(package.graph, x).reshape(20, -1))


@emulator_test
def test_more_samples_than_the_flash_holds_are_run_in_several_starts():
    package = small_package(0, "stm32f405")
    count = 393216 // package.header.input_count + 5
    x = random_samples(package.graph, count, 1)
    assert np.array_equal(run_on_board("stm32f405", package.to_bytes(), x), run_int8(package.graph, x).reshape(count, -1))


@pytest.mark.parametrize("board", BOARDS)
def test_a_package_that_a_board_refuses_is_named_with_its_status(board, monkeypatch):
    package = small_package(1, board)
    damaged = bytearray(package.device_form())
    damaged[len(damaged) // 2] ^= 1
    monkeypatch.setattr(type(package), "device_form", lambda self: bytes(damaged))
    with pytest.raises(DeviceError) as refusal:
        run_on_board(board, package.to_bytes(), random_samples(package.graph, 1, 1))
    assert refusal.value.status is Status.PACKAGE_CRC


def test_a_package_beyond_the_arena_of_the_program_is_refused_before_anything_starts():
    package = small_package(1, "posix")
    x = random_samples(package.graph, 1, 1)
    needed = run_arena_bytes(package.header.encoder_bytes, package.features, package.head_shape)
    budgets = Board.load("posix")
    run_on_board(dataclasses.replace(budgets, run_arena_bytes=needed), package.to_bytes(), x)
    with pytest.raises(DoesNotFitError) as refusal:
        run_on_board(dataclasses.replace(budgets, run_arena_bytes=needed - 1), package.to_bytes(), x)
    assert (refusal.value.needed, refusal.value.available) == (needed, needed - 1)


def test_a_damaged_file_is_refused_before_a_board_is_started():
    with pytest.raises(PackageError):
        run_on_board("posix", b"FMP1 and nothing else", np.zeros((1, 4), np.int8))


def test_samples_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="the package's input"):
        run_on_board("posix", small_package(1, "posix").to_bytes(), np.zeros((1, 1), np.int8))


@emulator_test
def test_a_package_larger_than_its_region_does_not_fit(monkeypatch):
    package = small_package(1, "stm32f405")
    monkeypatch.setattr(type(package), "device_form", lambda self: bytes(393217))
    with pytest.raises(DoesNotFitError):
        run_on_board("stm32f405", package.to_bytes(), random_samples(package.graph, 1, 1))


def test_the_verb_writes_the_array_and_one_json_object(tmp_path, capsys):
    package = small_package(2, "posix")
    x = random_samples(package.graph, 3, 2)
    (tmp_path / "m.fmp").write_bytes(package.to_bytes())
    np.save(tmp_path / "x.npy", x)
    parser = argparse.ArgumentParser()
    run_verb.add_arguments(parser)
    files = {"input": tmp_path / "x.npy", "output": tmp_path / "y.npy"}
    arguments = [str(tmp_path / "m.fmp"), "--board", "posix", "--json"]
    arguments += [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert run_verb.run(parser.parse_args(arguments)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["samples"] == 3
    assert np.array_equal(np.load(files["output"]), run_int8(package.graph, x).reshape(3, -1))
