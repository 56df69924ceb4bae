# SPDX-License-Identifier: Apache-2.0
"""The package reader: what it refuses, and that nothing hostile gets past it."""

import ctypes
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmote.wire.schema import Status
from firmware_tests import package_builder as fmp
from firmware_tests.native import BUSY, OK, Encoder, OpenPackage, aligned, harness, library
from firmware_tests.test_kernels import channel_constants, int8

FEATURES = 5


def builder_of_everything() -> tuple[fmp.Builder, int]:
    """Every operator once or more, few bytes; and where the features are."""
    rng = np.random.default_rng(7)

    def channels(*shape: int) -> tuple[np.ndarray, ...]:
        out_c = shape[-1] if len(shape) == 3 else shape[0]
        return (int8(rng, *shape), *channel_constants(np.random.default_rng(1), out_c, int(np.prod(shape)) // out_c))

    low_high = (-128, 127)
    builder = fmp.Builder(4 * 4 * 2)
    x = builder.pad(0, (4, 4, 2), (1, 0, 1, 0), 3)
    x = builder.conv(
        fmp.CONV_2D, x, ((5, 5, 2), (4, 4, 5)), (2, 2), (1, 1), (1, 1), (0, 0), channels(5, 2, 2, 2), (3, 1, *low_high)
    )
    y = builder.conv(
        fmp.DEPTHWISE_CONV_2D, x, ((4, 4, 5), (4, 4, 5)), (3, 3), (1, 1), (1, 1), (1, 1), channels(3, 3, 5), (1, -2, *low_high), 5
    )
    x = builder.add(x, (y, 0, 80), 80, 1, -2, 4, 20, 2**30, 0, 2**30 + 99, -1, 2**30 + 5, -19, *low_high)
    x = builder.table(x, 80, int8(rng, 256))
    x = builder.pool(fmp.MAX_POOL_2D, x, ((4, 4), (3, 3)), 5, (2, 2), (1, 1), (0, 0), low_high)
    x = builder.pool(fmp.AVERAGE_POOL_2D, x, ((3, 3), (2, 2)), 5, (2, 2), (2, 2), (1, 1), low_high)
    x = builder.mean(x, (2, 2, 5), 2**30, -1, -128, -128)
    x = builder.dense(x, 5, FEATURES, channels(5, 5), (-128, 0, *low_high))
    small = int8(rng, 5) // 16
    four_bits = (int8(rng, 5, 5) // 16, *channels(5, 5)[1:])
    x = builder.mul(x, (builder.constant(small), 1, 5), 5, 3, 1, -4, 2**30, -3, *low_high)
    x = builder.dense(x, 5, 5, four_bits, (2, 0, *low_high), fmp.FULLY_CONNECTED_INT4)
    image = ((1, 1, 5), (1, 1, 5))
    conv4 = (int8(rng, 5, 1, 1, 5) // 16, *four_bits[1:])
    x = builder.conv(fmp.CONV_2D_INT4, x, image, (1, 1), (1, 1), (1, 1), (0, 0), conv4, (3, 1, *low_high))
    depthwise4 = (int8(rng, 1, 1, 5) // 16, *four_bits[1:])
    x = builder.conv(fmp.DEPTHWISE_CONV_2D_INT4, x, image, (1, 1), (1, 1), (1, 1), (0, 0), depthwise4, (3, 1, *low_high), 5)
    x = builder.softmax(x, 1, 5, np.linspace(2**31 - 1, 0, 256).astype(np.int32))
    return builder, builder.copy(x, builder.tensor(5), (1, 1, 1, 5), (4, 0, 0, 0, -1), (0, 0, 0, 0, 1))


def package_of_everything() -> bytes:
    builder, out = builder_of_everything()
    return builder.build(out, FEATURES)


@pytest.fixture
def package_file(tmp_path: Path) -> Path:
    path = tmp_path / "everything.fmp"
    path.write_bytes(package_of_everything())
    return path


def run_harness(*arguments: object) -> int:
    """How many candidates were accepted; fails where a sanitizer or the harness objects."""
    result = subprocess.run([str(harness()), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr[-3000:]}"
    return int(result.stdout)


def test_package_with_every_operator_is_accepted_with_its_numbers() -> None:
    package = package_of_everything()
    opened = OpenPackage(package)

    assert opened.status == OK
    numbers = opened.struct
    assert (numbers.size, numbers.op_count, numbers.input_count, numbers.feature_count) == (len(package), 15, 32, FEATURES)
    shape = numbers.head_shape
    assert (shape.inputs, shape.hidden, shape.outputs, shape.feature_zero_point) == (FEATURES, 0, 3, -7)
    assert numbers.head_parameters == 3 * FEATURES + 3
    assert numbers.head_shape.feature_scale == np.float32(0.05)


def test_a_call_of_the_encoder_stays_within_its_budget() -> None:
    package = package_of_everything()
    opened, lib, encoder = OpenPackage(package), library(), Encoder()
    memory = aligned(opened.struct.encoder_bytes)
    costs, offset = [], section_offset(package, fmp.PLAN) + 48
    for _ in range(opened.struct.op_count):
        opcode_words, units, unit_macs = np.frombuffer(package, "<u4", 3, offset).tolist()
        costs += [unit_macs] * units
        offset += 4 * (opcode_words >> 16)
    for budget in (max(costs), 2 * max(costs)):
        lib.fedmote_encoder_init(ctypes.byref(encoder), ctypes.byref(opened.struct), ctypes.c_void_p(memory.ctypes.data))
        calls = 1
        while lib.fedmote_encoder_run(ctypes.byref(encoder), ctypes.c_uint32(budget)) == BUSY:
            calls += 1
        assert sum(costs) <= calls * budget


def test_package_may_lie_in_a_larger_slot() -> None:
    package = package_of_everything()
    opened = OpenPackage(package + bytes(100))

    assert opened.status == OK
    assert opened.struct.size == len(package)


def test_package_is_refused_at_every_truncation(package_file: Path) -> None:
    assert run_harness("cut", package_file) == 0


def test_package_is_refused_after_every_flipped_bit(package_file: Path) -> None:
    assert run_harness("flip", package_file) == 0


@pytest.mark.parametrize("seed", range(4))
def test_mutants_with_a_mended_checksum_never_touch_foreign_memory(package_file: Path, seed: int) -> None:
    accepted = run_harness("mutate", package_file, 5000, seed)

    assert 0 < accepted < 5000, f"seed {seed}: {accepted} accepted; neither all nor none prove anything"


def with_u32(package: bytes, offset: int, value: int) -> bytes:
    return fmp.seal(package[:offset] + fmp.words(value) + package[offset + 4 :])


def section_offset(package: bytes, kind: int) -> int:
    """Where the content of a section begins; the builder writes sections 1 to 4 in order."""
    return int.from_bytes(package[48 + 16 * (kind - 1) + 4 :][:4], "little")


def with_section_entry(word: int, value: int, kind: int = fmp.PLAN) -> Callable[[bytes], bytes]:
    return lambda package: with_u32(package, 48 + 16 * (kind - 1) + 4 * word, value)


def with_section_word(kind: int, word: int, value: int) -> Callable[[bytes], bytes]:
    return lambda package: with_u32(package, section_offset(package, kind) + 4 * word, value)


def with_record_word(index: int, word: int, value: int) -> Callable[[bytes], bytes]:
    def edit(package: bytes) -> bytes:
        offset = section_offset(package, fmp.PLAN) + 48
        for _ in range(index):
            offset += 4 * int.from_bytes(package[offset + 2 : offset + 4], "little")
        return with_u32(package, offset + 4 * word, value)

    return edit


def softmax_over_itself(_package: bytes) -> bytes:
    """Five rows of five, whose output begins 16 bytes behind the input."""
    builder = fmp.Builder(64)
    out = builder.softmax(0, 5, 5, np.linspace(2**31 - 1, 0, 256).astype(np.int32))
    builder.records[0] = builder.records[0][:16] + fmp.words(16) + builder.records[0][20:]
    return builder.build(out, 25)


PADDING, CONV, DEPTHWISE, SUM, TABLE, MAX_POOL, AVERAGE_POOL, MEAN, DENSE, MUL, _, CONV_INT4, _, SOFTMAX, COPY = range(15)
REFUSALS: dict[str, tuple[Callable[[bytes], bytes], Status]] = {
    "another magic": (lambda p: b"FMP2" + p[4:], Status.PACKAGE_MAGIC),
    "another format": (lambda p: fmp.seal(p[:4] + b"\x01\x00" + p[6:]), Status.PACKAGE_VERSION),
    "a size beyond the bytes": (lambda p: with_u32(p, 8, len(p) + 16), Status.PACKAGE_SIZE),
    "a size that is no multiple of 16": (lambda p: with_u32(p + bytes(8), 8, len(p) + 8), Status.PACKAGE_SIZE),
    "a wrong checksum": (lambda p: p[:-1] + bytes([p[-1] ^ 1]), Status.PACKAGE_CRC),
    "more sections than bytes": (lambda p: fmp.seal(p[:6] + b"\xff\xff" + p[8:]), Status.PACKAGE_SECTION),
    "a section before the table's end": (with_section_entry(1, 48), Status.PACKAGE_SECTION),
    "a misaligned section": (lambda p: with_u32(p, 68, section_offset(p, 2) + 4), Status.PACKAGE_SECTION),
    "a section behind the file": (with_section_entry(1, 0xFFFFFFF0), Status.PACKAGE_SECTION),
    "a section whose end wraps": (with_section_entry(2, 0xFFFFFFFF), Status.PACKAGE_SECTION),
    "a missing section": (with_section_entry(0, 99), Status.PACKAGE_SECTION),
    "a doubled section": (with_section_entry(0, fmp.MANIFEST), Status.PACKAGE_SECTION),
    "reserved bits of a section": (with_section_entry(3, 1), Status.PACKAGE_SECTION),
    "an unknown operator": (with_record_word(DENSE, 0, 99 | 12 << 16), Status.PACKAGE_OPERATOR),
    "a record of another length": (with_record_word(CONV, 0, 1 | 27 << 16), Status.PACKAGE_BOUNDS),
    "more operators than records": (with_section_word(fmp.PLAN, 0, 16), Status.PACKAGE_BOUNDS),
    "an arena one byte too small": (with_section_word(fmp.PLAN, 1, 420), Status.PACKAGE_BOUNDS),
    "an input outside the arena": (with_section_word(fmp.PLAN, 2, 0xFFFFFFF0), Status.PACKAGE_BOUNDS),
    "an empty input": (with_section_word(fmp.PLAN, 3, 0), Status.PACKAGE_BOUNDS),
    "a misaligned feature vector": (with_section_word(fmp.PLAN, 4, 4), Status.PACKAGE_BOUNDS),
    "an infinite scale": (with_section_word(fmp.PLAN, 8, 0x7F800000), Status.PACKAGE_BOUNDS),
    "a zero point beyond int8": (with_section_word(fmp.PLAN, 9, 128), Status.PACKAGE_BOUNDS),
    "units that are not rows": (with_record_word(CONV, 1, 5), Status.PACKAGE_BOUNDS),
    "a row of a convolution that costs more than it says": (with_record_word(CONV, 2, 159), Status.PACKAGE_BOUNDS),
    "a row of a depthwise convolution that costs more": (with_record_word(DEPTHWISE, 2, 179), Status.PACKAGE_BOUNDS),
    "a row of pooling that costs more": (with_record_word(MAX_POOL, 2, 59), Status.PACKAGE_BOUNDS),
    "a row of padding that costs more": (with_record_word(PADDING, 2, 9), Status.PACKAGE_BOUNDS),
    "a channel of a mean that costs more": (with_record_word(MEAN, 2, 3), Status.PACKAGE_BOUNDS),
    "an output of a dense layer that costs more": (with_record_word(DENSE, 2, 4), Status.PACKAGE_BOUNDS),
    "a block of a sum that costs more": (with_record_word(SUM, 2, 63), Status.PACKAGE_BOUNDS),
    "weights outside their section": (with_record_word(CONV, 5, 0xFFFFFFFC), Status.PACKAGE_BOUNDS),
    "an image of 2^32 bytes": (with_record_word(CONV, 10, 0x10000), Status.PACKAGE_BOUNDS),
    "channels of zero": (with_record_word(CONV, 12, 0), Status.PACKAGE_BOUNDS),
    "a stride of zero": (with_record_word(CONV, 15, 0), Status.PACKAGE_BOUNDS),
    "windows that leave int32": (with_record_word(CONV, 19, 0x80000000), Status.PACKAGE_BOUNDS),
    "an empty activation range": (with_record_word(CONV, 24, -129), Status.PACKAGE_BOUNDS),
    "groups that do not make the outputs": (with_record_word(DEPTHWISE, 27, 2), Status.PACKAGE_BOUNDS),
    "groups that do not make the inputs": (with_record_word(CONV, 25, 2), Status.PACKAGE_BOUNDS),
    "weights in an order for other kernels": (with_section_word(fmp.PLAN, 11, 1), Status.PACKAGE_ARRANGEMENT),
    "a left shift that overflows": (with_record_word(SUM, 12, 23), Status.PACKAGE_BOUNDS),
    "a negative multiplier": (with_record_word(SUM, 13, -1), Status.PACKAGE_BOUNDS),
    "a shift beyond 31": (with_record_word(MUL, 13, -32), Status.PACKAGE_BOUNDS),
    "a table outside its section": (with_record_word(TABLE, 5, 0xFFFFFFF0), Status.PACKAGE_BOUNDS),
    "a second input longer than the first": (with_record_word(MUL, 8, 6), Status.PACKAGE_BOUNDS),
    "a second input of nothing": (with_record_word(MUL, 8, 0), Status.PACKAGE_BOUNDS),
    "a second input in no place": (with_record_word(MUL, 6, 2), Status.PACKAGE_BOUNDS),
    "a constant input outside its section": (with_record_word(MUL, 5, 0xFFFFFFF0), Status.PACKAGE_BOUNDS),
    "a softmax that is written over a part of its input": (softmax_over_itself, Status.PACKAGE_BOUNDS),
    "exponentials that are none": (with_record_word(SOFTMAX, 5, 0), Status.PACKAGE_BOUNDS),
    "a row of a softmax that costs more": (with_record_word(SOFTMAX, 2, 4), Status.PACKAGE_BOUNDS),
    "a copy that reads in front of the arena": (with_record_word(COPY, 13, -0x10000), Status.PACKAGE_BOUNDS),
    "a copy that reads behind the arena": (with_record_word(COPY, 9, 0x10000), Status.PACKAGE_BOUNDS),
    "a copy that writes behind the arena": (with_record_word(COPY, 18, 0x10000), Status.PACKAGE_BOUNDS),
    "weights of four bits outside their section": (with_record_word(CONV_INT4, 5, 0xFFFFFFFC), Status.PACKAGE_BOUNDS),
    "a pooling window in the padding alone": (with_record_word(AVERAGE_POOL, 14, 2), Status.PACKAGE_BOUNDS),
    "a pooling window behind the input": (with_record_word(MAX_POOL, 12, 4), Status.PACKAGE_BOUNDS),
    "a mean over nothing": (with_record_word(MEAN, 5, 0), Status.PACKAGE_BOUNDS),
    "padding that pushes the input out": (with_record_word(PADDING, 10, 2), Status.PACKAGE_BOUNDS),
    "two head layers": (with_section_word(fmp.HEAD, 0, 2), Status.PACKAGE_HEAD),
    "a head of other inputs": (with_section_word(fmp.HEAD, 1, FEATURES + 1), Status.PACKAGE_HEAD),
    "a head of other outputs": (with_section_word(fmp.HEAD, 2, 4), Status.PACKAGE_HEAD),
    "a head with an activation": (with_section_word(fmp.HEAD, 3, 1), Status.PACKAGE_HEAD),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSALS)
def test_reader_refuses_with_the_status_of_the_fault(fault: str) -> None:
    edit, status = REFUSALS[fault]

    assert OpenPackage(edit(package_of_everything())).status == -status


def test_port_with_a_hash_refuses_what_the_checksum_alone_would_pass() -> None:
    package = package_of_everything()
    forged = package[:16] + bytes(32) + package[48:]
    forged = forged[:12] + fmp.words(zlib.crc32(forged[:12] + forged[16:])) + forged[16:]

    assert OpenPackage(package, is_hashing=True).status == OK
    assert OpenPackage(forged).status == OK
    assert OpenPackage(forged, is_hashing=True).status == -Status.PACKAGE_HASH


def test_operator_that_a_program_does_not_name_is_refused() -> None:
    builder = fmp.Builder(5)
    package = builder.build(builder.table(0, 5, int8(np.random.default_rng(0), 256)), 5)

    assert OpenPackage(package, operators=["pad", "table"]).status == OK
    assert OpenPackage(package, operators=["pad"]).status == -Status.PACKAGE_OPERATOR
    assert OpenPackage(package, operators=[]).status == -Status.PACKAGE_OPERATOR


def test_sum_of_products_that_could_overflow_is_refused() -> None:
    def package(in_n: int) -> bytes:
        builder = fmp.Builder(in_n)
        constants = (np.zeros((1, in_n), np.int8), *(np.zeros(1, np.int32) for _ in range(3)))
        return builder.build(builder.dense(0, in_n, 1, constants, (0, 0, -128, 127)), 1)

    assert OpenPackage(package(65535)).status == OK
    assert OpenPackage(package(65536)).status == -Status.PACKAGE_BOUNDS
