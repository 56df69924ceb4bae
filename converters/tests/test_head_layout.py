# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from fedmote.errors import ConversionError, PackageError
from fedmote.package.graph import HeadLayer
from fedmote.package.head import channels_last_columns, head_blob, head_tensors, parameter_count

PLAIN = HeadLayer("head.weight", "head.bias", 5, 3)
FLATTENED = HeadLayer("fc.weight", "fc.bias", 12, 3, chw=(3, 2, 2))


def random_tensors(layer, seed=1):
    rng = np.random.default_rng(seed)
    return {
        layer.weight: rng.standard_normal((layer.outputs, layer.inputs)).astype(np.float32),
        layer.bias: rng.standard_normal(layer.outputs).astype(np.float32),
    }


@pytest.mark.parametrize("layer", [PLAIN, FLATTENED])
def test_a_head_comes_back_from_its_blob_unchanged(layer):
    tensors = random_tensors(layer)

    back = head_tensors([layer], head_blob([layer], tensors))

    assert list(back) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def test_a_plain_head_is_weights_row_by_row_then_the_bias():
    tensors = random_tensors(PLAIN)

    blob = head_blob([PLAIN], tensors)

    np.testing.assert_array_equal(blob[:15].reshape(3, 5), tensors["head.weight"])
    np.testing.assert_array_equal(blob[15:], tensors["head.bias"])


def test_a_head_behind_a_flatten_gives_the_same_logits_on_channels_last_features():
    tensors = random_tensors(FLATTENED)
    channels_first = np.random.default_rng(2).standard_normal((3, 2, 2)).astype(np.float32)
    expected = tensors["fc.weight"] @ channels_first.ravel() + tensors["fc.bias"]

    blob = head_blob([FLATTENED], tensors)

    features = channels_first.transpose(1, 2, 0).ravel()
    np.testing.assert_allclose(blob[:36].reshape(3, 12) @ features + blob[36:], expected, rtol=1e-5)


def test_channels_last_columns_is_the_order_of_a_transposed_image():
    assert channels_last_columns((2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_blob_of_another_length_is_refused_with_both_lengths():
    with pytest.raises(PackageError, match=r"18 parameters expected.*\(17,\)"):
        head_tensors([PLAIN], np.zeros(parameter_count([PLAIN]) - 1, np.float32))


def test_a_missing_misshapen_or_infinite_head_tensor_is_refused_by_name():
    with pytest.raises(ConversionError, match=r"no tensor 'head\.weight'"):
        head_blob([PLAIN], {})
    for wrong in (np.zeros(4, np.float32), np.full(3, np.inf, np.float32)):
        with pytest.raises(ConversionError, match=r"'head\.bias' has shape .*expected \(3,\), all finite"):
            head_blob([PLAIN], {**random_tensors(PLAIN), "head.bias": wrong})
