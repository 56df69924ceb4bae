# SPDX-License-Identifier: Apache-2.0
"""The operators that stand in for those of `onnx.reference` equal torch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

from fedmote_convert.onnx_reference import evaluator_of

from .onnx_models import node


def computed(proto, *inputs, opset=18):
    names = [name for name in proto.input if name]
    return evaluator_of(proto, opset).run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), ((3, 2), (1, 2), (1, 0)), (3, 1, 1), (2, 3, 1)])
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_of_images_equal_those_of_torch(kernel, stride, padding, ceil):
    x = torch.randn((2, 3, 7, 8), generator=torch.Generator().manual_seed(1))
    kernels, strides, pads = (list(value) if isinstance(value, tuple) else [value] * 2 for value in (kernel, stride, padding))
    attributes = {"kernel_shape": kernels, "strides": strides, "pads": [*pads, *pads], "ceil_mode": int(ceil)}

    largest = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    np.testing.assert_array_equal(computed(node("MaxPool", "x", **attributes), x.numpy()), largest.numpy())
    for is_counted in (False, True):
        means = F.avg_pool2d(x, kernel, stride, padding, ceil_mode=ceil, count_include_pad=is_counted)
        actual = computed(node("AveragePool", "x", **attributes, count_include_pad=int(is_counted)), x.numpy(), opset=19)
        np.testing.assert_allclose(actual, means.numpy(), rtol=1e-5, atol=1e-6)


def test_uneven_pads_are_read_as_near_ends_then_far_ends():
    x = np.arange(1, 7, dtype=np.float32).reshape(1, 1, 2, 3)
    attributes = {"kernel_shape": [2, 2], "pads": [0, 1, 0, 0]}  # one column at the left

    np.testing.assert_array_equal(computed(node("MaxPool", "x", **attributes), x), [[[[4, 5, 6]]]])
    np.testing.assert_array_equal(computed(node("AveragePool", "x", **attributes), x), [[[[2.5, 3, 4]]]])
    counted = computed(node("AveragePool", "x", **attributes, count_include_pad=1), x)
    np.testing.assert_array_equal(counted, [[[[1.25, 3, 4]]]])


@pytest.mark.parametrize("automatic, expected", [("SAME_UPPER", [2, 4, 5]), ("SAME_LOWER", [1, 3, 5]), ("VALID", [2, 4])])
def test_automatic_padding_puts_the_odd_pixel_where_its_name_says(automatic, expected):
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)

    made = computed(node("MaxPool", "x", kernel_shape=[2], strides=[2], auto_pad=automatic), x)

    np.testing.assert_array_equal(made, [[expected]])


def test_a_dilated_pool_and_a_global_one_equal_torch():
    x = torch.randn((2, 3, 9), generator=torch.Generator().manual_seed(2))

    dilated = computed(node("MaxPool", "x", kernel_shape=[3], dilations=[2], pads=[1, 1]), x.numpy())

    np.testing.assert_array_equal(dilated, F.max_pool1d(x, 3, 1, 1, 2).numpy())
    np.testing.assert_array_equal(computed(node("GlobalMaxPool", "x"), x.numpy()), F.adaptive_max_pool1d(x, 1).numpy())


@pytest.mark.parametrize("opset", [13, 14, 15, 18])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_a_batch_normalisation_equals_torch_in_every_opset(opset, shape):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator)
    weight, bias, mean, variance = (torch.rand(3, generator=generator) for _ in range(4))
    proto = helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=1e-3)

    made = computed(proto, *(tensor.numpy() for tensor in (x, weight, bias, mean, variance)), opset=opset)

    np.testing.assert_allclose(made, F.batch_norm(x, mean, variance, weight, bias, eps=1e-3).numpy(), rtol=1e-4, atol=1e-6)
