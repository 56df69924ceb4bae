# SPDX-License-Identifier: Apache-2.0
"""Torch operators, one by one, and what they become in the graph.

`OPERATORS` joins the tables of `layers`, `pointwise`, `pools` and `views`: the name of an aten operator and the function that
translates a call of it. A translation works on shapes alone and either appends operators to the `Sketch` or refuses with the
nearest supported form. Names and defaults of arguments come from torch's own operator schema, so a handler reads
`call["stride"]` whichever way the module wrote it.

Every graph on the way computes what the module computes; explicit padding is a PAD operator of its own, a batch
normalisation a depthwise 1x1 convolution with the layout "batch_norm", which `passes` folds away where it can, and whatever does
nothing on a device (dropout, identity, views, permutations) is a RESHAPE.
"""

from __future__ import annotations

from fedmote_convert.layers import LAYERS
from fedmote_convert.pointwise import POINTWISE
from fedmote_convert.pools import POOLS
from fedmote_convert.sketch import Call, Handler, Sketch
from fedmote_convert.views import MOVES

# aten operator without its overload -> translation. In-place forms are found by their name without the underscore.
OPERATORS: dict[str, Handler] = {**LAYERS, **POINTWISE, **POOLS, **MOVES}

# Operators that change the shape of their argument and nothing else: of a parameter they make the same parameter.
RESHAPES = frozenset({"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"})

# Operators that give their argument's memory another name; a later in-place operator would change both.
VIEWS = (
    RESHAPES
    | {
        "slice",
        "select",
        "narrow",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "expand",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
    }
    | {"dropout", "contiguous", "to", "detach", "alias"}
)

# What is often met and not supported: the nearest form that is.
HINTS: dict[str, str] = {
    **dict.fromkeys(
        ("gelu", "elu", "celu", "selu", "prelu", "softplus", "mish", "rrelu"),
        "use ReLU, ReLU6, LeakyReLU, Hardswish, Hardsigmoid, Sigmoid, Tanh or SiLU",
    ),
    "log_softmax": "end the model with the Linear that makes the logits; softmax is part of the device's training",
    **dict.fromkeys(
        ("layer_norm", "group_norm", "instance_norm", "rms_norm"),
        "devices have no kernel for statistics of a sample; use BatchNorm, whose statistics are part of the model",
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "use Conv1d layers over time"),
    **dict.fromkeys(("conv3d", "conv_transpose1d", "conv_transpose2d"), "use Conv1d or Conv2d"),
    **dict.fromkeys(("sum", "var", "std", "min", "amin", "norm"), "use mean or amax"),
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "einsum", "scaled_dot_product_attention"), "use nn.Linear or nn.Conv1d"),
    **dict.fromkeys(
        ("upsample_nearest2d", "upsample_bilinear2d", "interpolate"), "devices have no kernel for it; use expand and view"
    ),
}


def translate(call: Call, sketch: Sketch) -> None:
    """Append what one call becomes.

    Raises:
        UnsupportedOpError: the operator, or this use of it, has no int8 form here.
    """
    name = operator_name(call.target)
    if name not in OPERATORS:
        raise call.refusal(f"operator {call.target} is not supported", hint_for(name))
    OPERATORS[name](call, sketch)


def hint_for(name: str) -> str:
    """The nearest supported form of an operator that has no translation."""
    return HINTS.get(name, f"supported are {', '.join(OPERATORS)}")


def operator_name(target: str) -> str:
    """Return "relu" for "aten.relu_.default": name space, overload and the mark of the in-place form removed."""
    parts = target.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] == "aten" else target
    return name.rstrip("_") if not name.startswith("_") else name
