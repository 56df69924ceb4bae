# SPDX-License-Identifier: Apache-2.0
"""The device's reader and the host's: what one accepts the other accepts; what one refuses the other refuses, for one reason."""

import ctypes
import struct
from collections import Counter

import numpy as np
import pytest

from fedmote.errors import PackageError
from fedmote.package import container
from fedmote.package.boards import Arithmetic, Board
from fedmote.package.budget import layout
from fedmote.package.execute import run_int8
from fedmote.package.file import Package, build_package
from fedmote.package.graph import Activation, HeadLayer
from fedmote.package.plan_check import check_head, check_plan
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.wire.schema import Arrangement, Opcode, Section, Status
from firmware_tests.native import OK, Layout, OpenPackage, address_of, library

WORDS = (0, 1, 2, 3, 8, 16, 0x7F, 0x80, 0xFFFF, 0x10000, 0x7F800000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)


def package_of(seed: int, classes: int = 3, hidden: int = 0) -> Package:
    graph = random_int8_graph(seed)
    features = int(np.prod(graph.activations[graph.output].shape))
    rng = np.random.default_rng(seed)
    tensors = {"w": rng.normal(size=(classes, features)).astype(np.float32), "b": np.zeros(classes, np.float32)}
    layers = [HeadLayer("w", "b", features, classes)]
    if hidden:
        tensors |= {"v": rng.normal(size=(hidden, features)).astype(np.float32), "c": np.zeros(hidden, np.float32)}
        tensors["w"] = rng.normal(size=(classes, hidden)).astype(np.float32)
        layers = [HeadLayer("v", "c", features, hidden, activation=Activation.RELU), HeadLayer("w", "b", hidden, classes)]
    return build_package(None, graph, layers, tensors, {}, Board.load("posix"), "specimen", 1)


def device_status(data: bytes) -> Status:
    return Status(-OpenPackage(data).status)


def host_status(data: bytes) -> Status:
    """Of the checks that the host shares with devices; further ones follow them."""
    try:
        sections = container.split_sections(data)
        header, _ = check_plan(sections[Section.PLAN], sections[Section.WEIGHTS])
        check_head(sections[Section.HEAD], header.feature_count)
    except PackageError as error:
        assert error.status is not None
        return error.status
    return Status.OK


def packages_with_every_operator() -> dict[int, Package]:
    """The smallest set of first seeds whose plans hold all opcodes."""
    chosen, met = {}, set()
    for seed in range(1000):
        package = package_of(seed)
        _, records = check_plan(package.sections[Section.PLAN], package.sections[Section.WEIGHTS])
        if {record.opcode for record in records} - met:
            chosen[seed] = package
            met |= {record.opcode for record in records}
        if met == set(Opcode):
            return chosen
    raise AssertionError(f"no seed has {set(Opcode) - met}")


@pytest.fixture(scope="module")
def specimens() -> dict[int, Package]:
    return packages_with_every_operator()


def test_device_opens_packages_of_the_host_and_computes_the_same_features() -> None:
    for seed in range(60):
        package, graph = package_of(seed), random_int8_graph(seed)
        for data in (package.to_bytes(), package.device_form()):
            opened = OpenPackage(data)
            assert opened.status == OK
            x = random_samples(graph, 3, seed)
            for macs in (0xFFFFFFFF, 1, 777):
                np.testing.assert_array_equal(opened.encode(x.reshape(3, -1), macs), run_int8(graph, x).reshape(3, -1))
            header = package.header
            assert opened.struct.encoder_bytes == header.encoder_bytes
            assert (opened.struct.macs, opened.struct.op_count) == (header.macs, header.op_count)
            assert opened.struct.head_shape.feature_scale == header.feature_scale
            assert opened.struct.head_parameters == package.outputs * (package.features + 1)
            weights = package.head[0].weights
            np.testing.assert_array_equal(np.ctypeslib.as_array(opened.struct.head, (weights.size,)), weights.ravel())


def test_both_give_the_same_status_for_every_word_of_plan_and_head_replaced(specimens) -> None:
    statuses: Counter[Status] = Counter()
    for seed, package in specimens.items():
        for kind in (Section.PLAN, Section.HEAD):
            section = package.sections[kind]
            for position in range(0, min(len(section), 2000), 4):
                (word,) = struct.unpack_from("<I", section, position)
                for value in {*WORDS, word + 1, word - 1, word ^ 0x10000, word + 16, word - 16}:
                    changed = section[:position] + struct.pack("<I", value & 0xFFFFFFFF) + section[position + 4 :]
                    sections = {k: v for k, v in package.sections.items() if k < 128} | {kind: changed}
                    data = container.join_sections(sections)
                    expected = device_status(data)
                    if expected is Status.PACKAGE_ARRANGEMENT and value in set(Arrangement):
                        continue  # known to the host, but not what these kernels take
                    assert host_status(data) is expected, f"seed {seed}, {kind.name} word {position // 4} = {value:#x}"
                    statuses[expected] += 1
    print({status.name: count for status, count in statuses.items()})
    assert {Status.OK, Status.PACKAGE_BOUNDS, Status.PACKAGE_OPERATOR, Status.PACKAGE_HEAD} <= set(statuses)


def test_both_give_the_same_status_for_multipliers_and_shifts_out_of_range(specimens) -> None:
    for seed, package in specimens.items():
        weights = package.sections[Section.WEIGHTS]
        for position in range(0, len(weights), 4):
            for value in (0x80000000, 31, 0xFFFFFFE0):
                changed = weights[:position] + struct.pack("<I", value) + weights[position + 4 :]
                sections = {k: v for k, v in package.sections.items() if k < 128} | {Section.WEIGHTS: changed}
                data = container.join_sections(sections)
                assert host_status(data) is device_status(data), f"seed {seed}, weights word {position // 4} = {value:#x}"


def test_both_give_the_same_status_for_every_word_of_header_and_table_replaced(specimens) -> None:
    package = next(iter(specimens.values()))
    for data in (package.device_form(), package.to_bytes()):
        count = struct.unpack_from("<H", data, 6)[0]
        for position in range(48, 48 + 16 * count, 4):
            (word,) = struct.unpack_from("<I", data, position)
            for value in {*WORDS, 48, 112, word + 16, word - 16, word + 4, len(data), len(data) - 16} - {word}:
                rest = data[48:position] + struct.pack("<I", value & 0xFFFFFFFF) + data[position + 4 :]
                sealed = container.seal(rest, count)
                is_host_doubled = host_status(sealed) is Status.PACKAGE_SECTION and value in package.sections and value >= 128
                if not is_host_doubled:  # the one thing that only a host looks at
                    assert host_status(sealed) is device_status(sealed), f"table word {position // 4} = {value:#x}"
        for position in range(12):
            for value in (0, 1, 0x7F, 0xFF):
                changed = data[:position] + bytes([value]) + data[position + 1 :]
                assert host_status(changed) is device_status(changed), f"byte {position} = {value:#x}"


def test_both_give_the_same_status_for_a_package_of_any_shorter_length(specimens) -> None:
    data = next(iter(specimens.values())).device_form()
    for length in range(len(data)):
        assert host_status(data[:length]) is device_status(data[:length]) is Status.PACKAGE_SIZE


def test_host_and_device_count_the_same_arena() -> None:
    rng = np.random.default_rng(4)
    body_max = 529  # default of fedmote_config.h, with which the library is built
    for turn in range(200):
        hidden = int(rng.integers(1, 40)) if turn % 2 else 0
        package = package_of(int(rng.integers(40)), classes=int(rng.integers(1, 40)), hidden=hidden)
        n = int(rng.integers(1, 5000))
        arithmetic: Arithmetic = "float32" if turn % 3 else "int16"
        opened, device = OpenPackage(package.device_form()), Layout()
        library().fedmote_layout_compute(
            ctypes.byref(device),
            ctypes.byref(opened.struct),
            ctypes.c_void_p(address_of(library(), f"fedmote_{arithmetic}")),
            ctypes.c_uint32(n),
            ctypes.c_uint32(0xFFFFFFFF),
        )
        assert opened.struct.head_parameters == package.head_shape.parameters
        host = layout(n, body_max, package.header, package.head_shape, arithmetic)
        assert device.receive == host.link
        for name in ("encoder", "head", "head_base", "velocity", "scratch", "samples", "cache", "required", "total"):
            assert getattr(device, name) == getattr(host, name), name
