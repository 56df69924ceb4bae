# SPDX-License-Identifier: Apache-2.0
"""What `fedmote bench kernels` measures as the example models costs what their conversions cost."""

import numpy as np
import pytest

from fedmote.lab import models
from fedmote.package.boards import Board
from fedmote.package.compile import compile_graph
from fedmote_convert.convert import convert
from fedmote_hil.models import example_encoders


@pytest.mark.parametrize(("name", "shape"), [("digits_cnn", (1, 8, 8)), ("har_cnn", (9, 128))])
def test_a_measured_example_has_the_operators_units_and_memory_of_the_converted_model(name, shape):
    x = np.random.default_rng(0).random((20, *shape), np.float32)
    package = convert(getattr(models, name)(), x, [Board.load("posix")], model_id=name).package
    converted, measured = compile_graph(package.graph), compile_graph(example_encoders()[name])
    assert [unit[1:] for unit in measured.units] == [unit[1:] for unit in converted.units]
    assert measured.header.encoder_bytes == converted.header.encoder_bytes
