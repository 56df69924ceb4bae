# SPDX-License-Identifier: Apache-2.0
"""The C sources of the SDK as a shared library for Python, compiled once per content.

The library traps on undefined behaviour (UBSan without recovery). Memory errors are the business of the harness in
`package_harness.c`, an executable of its own, because AddressSanitizer cannot be loaded into a running Python.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SDK = ROOT / "device_sdk"
BUILD = ROOT / "build" / "firmware_tests"
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Wshadow", "-Wmissing-prototypes", "-Wdouble-promotion", "-Werror"]
CORE = ["package", "arena", "encoder", "head", "head_float", "head_integer", "select", "crc32"]
OK, BUSY = 0, 2


def core_sources() -> list[Path]:
    """Everything between a package and a trained head; no link, no client."""
    return [*(SDK / "src" / f"{name}.c" for name in CORE), *operator_sources()]


def operator_sources() -> list[Path]:
    """All operators with their portable kernels, and the table of them."""
    folders = (SDK / "src" / "operators", SDK / "src" / "kernels")
    return [*(path for folder in folders for path in sorted(folder.glob("*.c"))), Path(__file__).with_name("all_operators.c")]


def all_operators(lib: ctypes.CDLL) -> int:
    """Address of the table of all operators in a library."""
    return address_of(lib, "all_operators")


def address_of(lib: ctypes.CDLL, name: str) -> int:
    """Address of a constant of a library."""
    return ctypes.addressof(ctypes.c_char.in_dll(lib, name))


def compile_c(name: str, sources: list[Path], flags: list[str]) -> Path:
    """Compiles with gcc into build/, or finds the result of an earlier compilation of the same content."""
    command = [
        "gcc",
        "-std=c99",
        "-g",
        *WARNINGS,
        f"-I{SDK / 'include'}",
        f"-I{SDK / 'src'}",
        f"-I{Path(__file__).parent}",
        *flags,
    ]
    digest = hashlib.sha256(" ".join(command).encode())
    headers = {*SDK.glob("src/**/*.h"), *SDK.glob("include/**/*.h"), *Path(__file__).parent.glob("*.h")}
    for path in sorted({*sources, *headers}):
        digest.update(path.read_bytes())
    target = BUILD / f"{name}-{digest.hexdigest()[:16]}"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, *map(str, sources), "-o", str(target), "-lm"], check=True)
    return target


class HeadShape(ctypes.Structure):
    """`struct fedmote_head_shape`."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("inputs", "hidden", "outputs")), ("is_relu", ctypes.c_bool),
        ("feature_scale", ctypes.c_float), ("feature_zero_point", ctypes.c_int32),
    ]  # fmt: skip


class Package(ctypes.Structure):
    """`struct fedmote_package`."""

    _fields_ = [
        ("operators", ctypes.c_void_p), ("bytes", ctypes.c_void_p), ("size", ctypes.c_uint32), ("hash", ctypes.c_void_p),
        ("ops", ctypes.c_void_p), ("op_count", ctypes.c_uint32), ("weights", ctypes.c_void_p),
        ("head", ctypes.POINTER(ctypes.c_float)),
        *((name, ctypes.c_uint32) for name in
          ("encoder_bytes", "input_offset", "input_count", "feature_offset", "feature_count")),
        ("macs", ctypes.c_uint32), ("head_shape", HeadShape), ("head_parameters", ctypes.c_uint32),
    ]  # fmt: skip


class Encoder(ctypes.Structure):
    """`struct fedmote_encoder`."""

    _fields_ = [
        ("package", ctypes.c_void_p), ("memory", ctypes.c_void_p), ("record", ctypes.c_void_p),
        ("op", ctypes.c_uint32), ("unit", ctypes.c_uint32),
    ]  # fmt: skip


class Layout(ctypes.Structure):
    """`struct fedmote_layout`."""

    _fields_ = [
        (name, ctypes.c_uint32) for name in
        ("receive", "transmit", "encoder", "head", "head_base", "velocity", "scratch", "samples", "cache", "cached", "required",
         "total")
    ]  # fmt: skip


class Training(ctypes.Structure):
    """`struct fedmote_training`."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in
          ("learning_rate_micro", "momentum_micro", "weight_decay_micro", "clip_norm_micro", "loss", "trained_layers")),
        ("is_bias_only", ctypes.c_bool), ("seed", ctypes.c_uint32),
    ]  # fmt: skip


class Head(ctypes.Structure):
    """`struct fedmote_head`, but for its end, which is the arithmetic's own."""

    _fields_ = [
        ("arithmetic", ctypes.c_void_p), ("shape", HeadShape), ("training", Training),
        *((name, ctypes.c_void_p) for name in ("parameters", "velocity", "scratch")),
        ("batch_size", ctypes.c_uint32), ("sweep", ctypes.c_uint8), ("is_counting", ctypes.c_bool),
        ("state", ctypes.c_uint64 * 16),
    ]  # fmt: skip


class Arithmetic(ctypes.Structure):
    """`struct fedmote_arithmetic`."""

    _fields_ = [
        ("parameter_bytes", ctypes.c_uint32), ("words_per_input", ctypes.c_uint32),
        ("begin", ctypes.CFUNCTYPE(None, ctypes.POINTER(Head), ctypes.c_void_p)),
        ("loss", ctypes.CFUNCTYPE(ctypes.c_float, ctypes.POINTER(Head), ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p)),
        ("batch_begin", ctypes.CFUNCTYPE(None, ctypes.POINTER(Head), ctypes.c_uint32)),
        ("batch_add", ctypes.CFUNCTYPE(ctypes.c_float, ctypes.POINTER(Head), ctypes.c_char_p, ctypes.c_uint32)),
        ("batch_end", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Head))),
        ("delta", ctypes.CFUNCTYPE(ctypes.c_float, ctypes.POINTER(Head), ctypes.c_void_p, ctypes.c_uint32)),
    ]  # fmt: skip


class Selector(ctypes.Structure):
    """`struct fedmote_selector`."""

    _fields_ = [
        ("seed", ctypes.c_uint32), ("device", ctypes.c_uint32), ("alpha", ctypes.c_float), ("beta", ctypes.c_float),
        ("gamma", ctypes.c_float), ("gamma_order", ctypes.c_uint32),
        ("sample_count", ctypes.c_uint32), ("limit", ctypes.c_uint32),
        ("rank", ctypes.c_void_p), ("norm_rank", ctypes.c_void_p),
    ]  # fmt: skip


HASH = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint8)
)


class Port(ctypes.Structure):
    """`struct fedmote_port`: of its members only the hash and the operators are ever set here."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in
          ("context", "now_ms", "random", "stream_read", "stream_write", "sample_count", "sample_read")),
        ("slot_bytes", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("slot_base", "slot_erase", "slot_write")),
        ("hash", HASH), ("event", ctypes.c_void_p), ("operators", ctypes.c_void_p), ("arithmetic", ctypes.c_void_p),
    ]  # fmt: skip


@HASH
def blake2b_of_two_spans(_context, first, first_size, second, second_size, digest):
    """The port's hash callback, with Python's BLAKE2b."""
    data = ctypes.string_at(first, first_size) + ctypes.string_at(second, second_size)
    ctypes.memmove(digest, hashlib.blake2b(data, digest_size=32).digest(), 32)


@functools.cache
def library() -> ctypes.CDLL:
    """The core of the SDK with UBSan."""
    flags = ["-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    lib = ctypes.CDLL(str(compile_c("libcore.so", core_sources(), flags)))
    lib.fedmote_encoder_input.restype = ctypes.c_void_p
    lib.fedmote_encoder_features.restype = ctypes.c_void_p
    lib.fedmote_draw.restype = ctypes.c_uint32
    lib.fedmote_crc32.restype = ctypes.c_uint32
    lib.fedmote_link_bytes.restype = ctypes.c_uint32
    return lib


@functools.cache
def harness() -> Path:
    """The executable that opens, mutates and runs packages under AddressSanitizer and UBSan."""
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return compile_c("package_harness", [Path(__file__).with_name("package_harness.c"), *core_sources()], flags)


def aligned(size: int) -> np.ndarray:
    """Uint8 zeros at a multiple of 16, as the SDK wants arenas and slots."""
    raw = np.zeros(size + 16, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + size]


class OpenPackage:
    """A package opened by the C reader, with an encoder bound to it.

    Attributes:
        status: what `fedmote_package_open` returned.
    """

    def __init__(self, package: bytes, is_hashing: bool = False, operators: Sequence[str] | None = None) -> None:
        """`operators`: names of those that the port has; without them, all."""
        port = Port(operators=all_operators(library()))
        if operators is not None:
            addresses = [address_of(library(), f"fedmote_operator_{name}") for name in operators]
            self._operators = (ctypes.c_void_p * (len(addresses) + 1))(*addresses, None)
            port.operators = ctypes.addressof(self._operators)
        if is_hashing:
            port.hash = blake2b_of_two_spans
        self._bytes = aligned(len(package))
        self._bytes[:] = np.frombuffer(package, np.uint8)
        self.struct = Package()
        self.status = library().fedmote_package_open(
            ctypes.byref(self.struct), ctypes.byref(port), ctypes.c_void_p(self._bytes.ctypes.data), ctypes.c_uint32(len(package))
        )

    def encode(self, x: np.ndarray, macs: int = 0xFFFFFFFF) -> np.ndarray:
        """Features int8 (N, feature_count) of samples int8 (N, input_count), in pieces of `macs`."""
        memory, encoder, lib = aligned(self.struct.encoder_bytes), Encoder(), library()
        lib.fedmote_encoder_init(ctypes.byref(encoder), ctypes.byref(self.struct), ctypes.c_void_p(memory.ctypes.data))
        features = np.empty((len(x), self.struct.feature_count), np.int8)
        for sample, out in zip(x, features, strict=True):
            ctypes.memmove(lib.fedmote_encoder_input(ctypes.byref(encoder)), sample.tobytes(), sample.size)
            while (status := lib.fedmote_encoder_run(ctypes.byref(encoder), ctypes.c_uint32(macs))) == BUSY:
                pass
            assert status == OK
            out[:] = np.frombuffer(ctypes.string_at(lib.fedmote_encoder_features(ctypes.byref(encoder)), out.size), np.int8)
        return features
