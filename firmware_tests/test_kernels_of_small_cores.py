# SPDX-License-Identifier: Apache-2.0
"""What only cores without a long multiplication and with few registers run (variants/cortex_m0), on this machine, and the
sizes at which kernels take their work in pieces."""

import ctypes
import functools

import numpy as np
import pytest

from firmware_tests import integer_reference as reference
from firmware_tests import native
from firmware_tests import package_builder as fmp
from firmware_tests.native import OK, SDK, OpenPackage
from firmware_tests.test_kernels import CASES, Case, channel_constants, int8, limits, zero_points

VARIANT = SDK / "variants" / "cortex_m0"


@functools.cache
def small_core_library() -> ctypes.CDLL:
    replaced = {path.name.replace("_cortex_m0", "") for path in VARIANT.glob("*.c")}
    sources = [*(path for path in native.core_sources() if path.name not in replaced), *sorted(VARIANT.glob("*.c"))]
    flags = ["-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    flags += ["-DFEDMOTE_HAS_LONG_MULTIPLY=0", f"-I{SDK / 'src' / 'kernels'}"]
    lib = ctypes.CDLL(str(native.compile_c("libsmallcore.so", sources, flags)))
    lib.fedmote_encoder_input.restype = ctypes.c_void_p
    lib.fedmote_encoder_features.restype = ctypes.c_void_p
    return lib


@pytest.fixture(params=["portable", "cortex_m0"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of kernels, one after the other."""
    if request.param == "cortex_m0":
        monkeypatch.setattr(native, "library", small_core_library)


def check(case: Case) -> None:
    package, x, expect = case
    opened = OpenPackage(package)
    assert opened.status == OK
    for row, sample in zip(opened.encode(x.reshape(len(x), -1)), x, strict=True):
        np.testing.assert_array_equal(row, expect(sample).ravel())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("operator", CASES)
def test_kernels_of_a_small_core_equal_the_integer_reference(operator: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", small_core_library)
    check(CASES[operator](np.random.default_rng(seed)))


def long_conv(is_depthwise: bool, kernel: tuple[int, int], dilation: int, groups: int, channels: tuple[int, int]) -> Case:
    """Stride 1, output as large as the input, taps in the padding on all sides."""
    rng = np.random.default_rng(7)
    (in_c, out_c), hw = channels, (4, 5)
    pads = tuple((size - 1) * dilation // 2 for size in kernel)
    products = kernel[0] * kernel[1] * in_c // groups
    w = int8(rng, *kernel, out_c) if is_depthwise else int8(rng, out_c, *kernel, in_c // groups)
    constants = (w, *channel_constants(rng, out_c, products))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(hw[0] * hw[1] * in_c)
    opcode = fmp.DEPTHWISE_CONV_2D if is_depthwise else fmp.CONV_2D
    shapes, steps = ((*hw, in_c), (*hw, out_c)), ((1, 1), (dilation, dilation))
    out = builder.conv(opcode, 0, shapes, kernel, *steps, pads, constants, quantization, groups)
    x = int8(rng, 2, *hw, in_c)
    return (
        builder.build(out, hw[0] * hw[1] * out_c),
        x,
        lambda v: reference.conv(v, *constants, hw, *steps, pads, quantization, is_depthwise),
    )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("in_c", [28, 30, 56, 58, 130])
def test_patches_longer_than_a_piece_equal_the_integer_reference(in_c: int, dilation: int, groups: int) -> None:
    check(long_conv(False, (3, 3), dilation, groups, (in_c, 70 * groups)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kernel", [(4, 8), (7, 5), (3, 3), (1, 9), (5, 13)])
@pytest.mark.parametrize("channels", [(63, 63), (64, 64), (65, 65), (130, 130), (5, 15)])
def test_depthwise_with_many_taps_or_channels_equals_the_integer_reference(
    kernel: tuple[int, int], channels: tuple[int, int]
) -> None:
    check(long_conv(True, kernel, 1, channels[0], channels))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("outputs", [1, 2, 63, 64, 65, 131])
def test_dense_layers_of_many_outputs_equal_the_integer_reference(outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    constants = (int8(rng, outputs, 33), *channel_constants(rng, outputs, 33))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(33)
    package = builder.build(builder.dense(0, 33, outputs, constants, quantization), outputs)
    check((package, int8(rng, 2, 33), lambda v: reference.dense(v, *constants, quantization)))


PRODUCTS = r"""
#include <stdint.h>
#include "kernels/requantize.h"
uint32_t differing_products(const int32_t *x, const int32_t *multiplier, uint32_t count);
uint32_t differing_products(const int32_t *x, const int32_t *multiplier, uint32_t count) {
    uint32_t differing = 0;
    for (uint32_t i = 0; i < count; i++) {
        differing += fedmote_high_product_32(x[i], multiplier[i]) != fedmote_high_product_64(x[i], multiplier[i]);
    }
    return differing;
}
"""


def test_products_of_32_bits_equal_those_of_64() -> None:
    native.BUILD.mkdir(parents=True, exist_ok=True)
    source = native.BUILD / "products.c"
    source.write_text(PRODUCTS)
    flags = ["-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    lib = ctypes.CDLL(str(native.compile_c("libproducts.so", [source], flags)))
    rng = np.random.default_rng(0)
    edges = np.array([e + d for e in (-(2**31), -(2**16), -(2**15), 0, 2**15, 2**16, 2**30, 2**31) for d in range(-3, 4)])
    edges = np.concatenate([edges, edges + 2**31 - 2**15, edges - 2**31 + 2**15])
    edges = np.unique(edges[(edges >= -(2**31)) & (edges < 2**31)])
    pairs = np.array(np.meshgrid(edges, edges[edges >= 0])).reshape(2, -1)
    x = np.concatenate([pairs[0], rng.integers(-(2**31), 2**31, 10**6) >> rng.integers(0, 20, 10**6)]).astype(np.int32)
    multiplier = np.concatenate([pairs[1], rng.integers(0, 2**31, 10**6)]).astype(np.int32)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, multiplier))
    assert lib.differing_products(*pointers, ctypes.c_uint32(len(x))) == 0
