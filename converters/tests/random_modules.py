# SPDX-License-Identifier: Apache-2.0
"""Random torch modules: a hypothesis strategy of networks for images, sequences and features.

A network is a list of steps, each of which reads values made before it, so that branches, residuals, gates and values that are
read twice come about. Parameters are scaled so that activations keep their size from layer to layer: a network whose signal
dies out would prove nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

IMAGE, SEQUENCE, FEATURES = 4, 3, 2  # number of axes, batch included


class Function(nn.Module):
    """A function with a text."""

    def __init__(self, text, function):
        super().__init__()
        self.text, self.function = text, function

    def forward(self, *values):
        return self.function(*values)

    def extra_repr(self):
        return self.text


class ScaleAndShift(nn.Module):
    """Factors and offsets, one for each channel, learned or fixed."""

    def __init__(self, channels, axes, is_learned):
        super().__init__()
        shape = (channels, *[1] * axes)
        if is_learned:
            self.factor, self.offset = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.rand(shape) - 0.5)
        else:
            self.register_buffer("factor", torch.rand(shape) + 0.5, persistent=False)
            self.register_buffer("offset", torch.rand(shape) - 0.5, persistent=False)

    def forward(self, x):
        return x * self.factor + self.offset


class Network(nn.Module):
    """Layers over values: layer i reads the values `reads[i]`, of which number 0 is the sample, and makes value i + 1."""

    def __init__(self, layers, reads):
        super().__init__()
        self.layers, self.reads = nn.ModuleList(layers), reads

    def forward(self, x):
        values = [x]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(layer(*(values[number] for number in reads)))
        return values[-1]


@dataclass(frozen=True)
class RandomModule:
    """A module in evaluation mode.

    Attributes:
        module: with random parameters.
        sample_shape: of one sample, without the batch.
        seed: of its parameters, and for samples.
        is_supported: whether all its layers have an int8 form.
    """

    module: nn.Module
    sample_shape: tuple[int, ...]
    seed: int
    is_supported: bool

    def samples(self, count, seed=0):
        """Samples float32 (count, *sample_shape)."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * seed + 1)
        return torch.randn((count, *self.sample_shape), generator=generator).numpy()

    def __repr__(self):
        lines = [f"{reads} {layer}" for layer, reads in zip(self.module.layers, self.module.reads, strict=True)]
        return f"seed {self.seed}, sample {self.sample_shape}: " + "; ".join(lines)


class _Builder:
    """A network in the making: draws layers that suit the shape of the last value."""

    def __init__(self, draw, sample_shape):
        self.draw = draw
        self.layers, self.reads, self.shapes = [], [], [(1, *sample_shape)]
        self.is_supported = True

    @property
    def last(self):
        return len(self.layers)

    @property
    def shape(self):
        return self.shapes[-1]

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def one_of(self, values):
        return self.draw(st.sampled_from(values))

    def add(self, layer, *reads):
        """Add a layer over some values, or over the last one; return the number of what it makes."""
        reads = reads or (self.last,)
        with torch.no_grad():
            result = layer.eval()(*(torch.zeros(self.shapes[number]) for number in reads))
        self.layers.append(layer)
        self.reads.append(reads)
        self.shapes.append(tuple(result.shape))
        return self.last

    def apply(self, text, function, *reads):
        return self.add(Function(text, function), *reads)

    # ---- layers for every shape

    def activation(self):
        slope = self.one_of([0.01, 0.2])
        layers = [
            nn.ReLU(),
            nn.ReLU6(),
            nn.LeakyReLU(slope),
            nn.Hardswish(),
            nn.Hardsigmoid(),
            nn.Sigmoid(),
            nn.Tanh(),
            nn.SiLU(),
        ]
        layers += [nn.Hardtanh(), nn.Hardtanh(-0.5, 1.5), nn.Dropout(), nn.Identity()]
        layers += [
            Function("clamp(min=-0.3)", lambda x: x.clamp(min=-0.3)),
            Function("clamp(max=0.7)", lambda x: x.clamp(max=0.7)),
        ]
        self.add(self.one_of(layers))

    def arithmetic(self):
        functions = {
            "1 - x": lambda x: 1 - x,
            "(x - 0.5) / 2": lambda x: (x - 0.5) / 2,
            "-x": lambda x: -x,
            "x * tanh(x)": lambda x: x * torch.tanh(x),
            "x + x": lambda x: x + x,
            "relu_(2 * x)": lambda x: torch.relu_(2 * x),
        }
        text = self.one_of(sorted(functions))
        self.apply(text, functions[text])

    def norm(self):
        kind = {IMAGE: nn.BatchNorm2d, SEQUENCE: nn.BatchNorm1d, FEATURES: nn.BatchNorm1d}[len(self.shape)]
        self.add(kind(self.shape[1], affine=self.draw(st.booleans())))

    def scale(self):
        self.add(ScaleAndShift(self.shape[1], len(self.shape) - 2, self.draw(st.booleans())))

    def unsupported(self):
        layers = [nn.GELU(), nn.ELU(), nn.PReLU(), nn.LayerNorm(self.shape[1:]), nn.Softplus(), nn.LogSoftmax(1)]
        layers.append(Function("sum", lambda x: x.sum(1, keepdim=True)))
        layers.append(Function("cumsum", lambda x: x.cumsum(1)))
        self.add(self.one_of(layers))
        self.is_supported = False

    # ---- images and sequences

    def convolution(self, outputs=None, *, is_same=False):
        """A convolution over all axes behind the channels; with `is_same`, of stride 1 and the size of its input."""
        axes, channels, sizes = len(self.shape) - 2, self.shape[1], self.shape[2:]
        groups = self.one_of([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        outputs = outputs or self.integer(1, 2 if groups == channels else 3) * groups
        if outputs % groups:
            groups = 1
        kernel, dilation, stride, padding = [], [], [], []
        for size in sizes:
            dilation.append(self.integer(1, 2))
            kernel.append(self.integer(1, 3))
            padding.append(dilation[-1] * (kernel[-1] // 2) if is_same else self.integer(0, kernel[-1] // 2))
            if (kernel[-1] - 1) * dilation[-1] + 1 > size + 2 * padding[-1] or (is_same and kernel[-1] == 2):
                kernel[-1], padding[-1] = 1, 0
            stride.append(1 if is_same else self.integer(1, 2))
        layer = {1: nn.Conv1d, 2: nn.Conv2d}[axes]
        bias = self.draw(st.booleans())
        args = (channels, outputs, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, bias)
        return self.add(layer(*args))

    def causal(self):
        """A convolution over the last axis that sees the past alone."""
        dilation, kernel = self.integer(1, 3), self.integer(2, 3)
        reach = (kernel - 1) * dilation
        self.apply(f"pad({reach}, 0)", lambda x: F.pad(x, (reach, 0)))
        size = {SEQUENCE: kernel, IMAGE: (1, kernel)}[len(self.shape)]
        layer = {SEQUENCE: nn.Conv1d, IMAGE: nn.Conv2d}[len(self.shape)]
        self.add(
            layer(self.shape[1], self.integer(1, 4), size, dilation=dilation if len(self.shape) == SEQUENCE else (1, dilation))
        )

    def pool(self):
        axes, sizes = len(self.shape) - 2, self.shape[2:]
        kernel = tuple(min(self.integer(1, 3), size) for size in sizes)
        stride = tuple(self.integer(1, length) for length in kernel)
        padding = tuple(self.integer(0, length // 2) for length in kernel)
        ceil_mode = self.draw(st.booleans())
        maximum, average = {1: (nn.MaxPool1d, nn.AvgPool1d), 2: (nn.MaxPool2d, nn.AvgPool2d)}[axes]
        if self.draw(st.booleans()):
            self.add(maximum(kernel, stride, padding, ceil_mode=ceil_mode))
        else:
            self.add(average(kernel, stride, padding))

    def adaptive(self):
        sizes = tuple(self.one_of([n for n in range(1, size + 1) if size % n == 0]) for size in self.shape[2:])
        layers = {1: (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 2: (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)}[len(sizes)]
        self.add(self.one_of(layers)(sizes if len(sizes) == 2 else sizes[0]))

    def pads(self):
        amounts = tuple(self.integer(0, 2) for _ in range(2 * self.integer(1, len(self.shape) - 1)))
        self.apply(f"pad{amounts}", lambda x: F.pad(x, amounts))

    def residual(self):
        start = self.last
        inner = self.convolution(self.shape[1], is_same=True)
        if self.draw(st.booleans()):
            self.activation()
            inner = self.last
        self.apply("x + y", lambda x, y: x + y, start, inner)

    def branches(self):
        start = self.last
        one = self.convolution(self.integer(1, 3), is_same=True)
        axes = len(self.shape) - 2
        layer = {1: nn.Conv1d, 2: nn.Conv2d}[axes]
        two = self.add(layer(self.shapes[start][1], self.integer(1, 3), 1), start)
        values = [one, two, start][: self.integer(2, 3)]
        self.apply("cat", lambda *parts: torch.cat(parts, 1), *values)

    def gate(self):
        start, channels = self.last, self.shape[1]
        axes = tuple(range(2, len(self.shape)))
        self.apply(f"mean{axes}", lambda x: x.mean(axes))
        self.add(nn.Linear(channels, channels))
        self.add(self.one_of([nn.Sigmoid(), nn.Hardsigmoid()]))
        self.apply("x * gate", lambda x, y: x * y.view(-1, y.shape[1], *[1] * len(axes)), start, self.last)

    def map_gate(self):
        """A factor for every pixel or step, which repeats along the channels."""
        name = self.one_of(["mean", "amax"])
        self.apply(f"x * sigmoid({name}(1))", lambda x: x * torch.sigmoid(getattr(x, name)(1, keepdim=True)))

    def part(self):
        axis = self.integer(1, len(self.shape) - 1)
        length = self.shape[axis]
        if length < 2:
            return
        first, step = self.integer(0, length // 2), self.integer(1, 2)
        function = self.one_of(
            [
                Function(f"narrow {axis} from {first}", lambda x: x.narrow(axis, first, length - first)),
                Function(f"chunk {axis}", lambda x: x.chunk(2, axis)[0]),
                Function(f"swap halves {axis}", lambda x: torch.cat(x.split(length // 2, axis)[::-1], axis)),
                Function(f"every {step} of {axis}", lambda x: x[(slice(None),) * axis + (slice(first, None, step),)]),
            ]
        )
        self.add(function)

    def shuffle(self):
        channels = self.shape[1]
        groups = self.one_of([g for g in (1, 2, 3, 4) if channels % g == 0])
        self.apply(
            f"shuffle {groups}", lambda x: x.view(-1, groups, channels // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        )

    def steps_of_a_linear(self):
        """A Linear at every pixel or step, channels last."""
        axes = len(self.shape)
        last = (0, *range(2, axes), 1)
        self.apply(f"permute{last}", lambda x: x.permute(last))
        self.add(nn.Linear(self.shape[-1], self.integer(1, 4)))
        if self.draw(st.booleans()):
            self.activation()
        first = (0, axes - 1, *range(1, axes - 1))
        self.apply(f"permute{first}", lambda x: x.permute(first))

    def permutation(self):
        axes = self.draw(st.permutations(range(1, len(self.shape))))
        self.apply(f"permute(0, {axes})", lambda x: x.permute(0, *axes))

    def reduction(self):
        """From an image to a sequence or features, from a sequence to features."""
        axes = tuple(sorted(self.draw(st.sets(st.integers(1, len(self.shape) - 1), min_size=1, max_size=len(self.shape) - 2))))
        name = self.one_of(["mean", "amax"])
        self.apply(f"{name}{axes}", lambda x: getattr(x, name)(axes))

    def flatten(self):
        start = self.integer(1, len(self.shape) - 2)
        self.apply(f"flatten({start})", lambda x: x.flatten(start))

    def softmax(self):
        axis = self.integer(1, len(self.shape) - 1)
        self.add(nn.Softmax(axis))

    # ---- features

    def linear(self):
        self.add(nn.Linear(self.shape[1], self.integer(2, 8), bias=self.draw(st.booleans())))

    def linear_residual(self):
        start, size = self.last, self.shape[1]
        inner = self.add(nn.Linear(size, size))
        self.apply("x + y", lambda x, y: x + y, start, inner)

    def unflatten(self):
        size = self.shape[1]
        channels = self.one_of([n for n in range(1, size + 1) if size % n == 0])
        self.apply(f"view({channels}, ...)", lambda x: x.view(-1, channels, size // channels))


_EVERYWHERE = ("activation", "activation", "arithmetic", "norm", "scale")
_MAPS = (
    *(
        "convolution",
        "convolution",
        "convolution",
        "residual",
        "branches",
        "gate",
        "map_gate",
        "pool",
        "adaptive",
        "pads",
        "causal",
        "part",
    ),
    *("shuffle", "steps_of_a_linear", "permutation", "reduction", "flatten"),
)
_STEPS = {IMAGE: _EVERYWHERE + _MAPS, SEQUENCE: _EVERYWHERE + _MAPS}
_STEPS[FEATURES] = (*_EVERYWHERE, "linear", "linear", "linear_residual", "unflatten")
_LARGEST = 600  # elements of a value: networks stay those that a test can run by the hundred


@st.composite
def random_modules(draw, is_supported_only=False):
    """Networks of three to eight steps for samples (C, H, W), (C, W) or (F,)."""
    seed = draw(st.integers(0, 999))
    sample_shape = draw(
        st.one_of(
            st.tuples(st.integers(1, 4), st.integers(4, 8), st.integers(4, 8)),
            st.tuples(st.integers(2, 6), st.integers(6, 16)),
            st.tuples(st.integers(4, 16)),
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = _Builder(draw, sample_shape)
        for _ in range(draw(st.integers(3, 8))):
            getattr(builder, draw(st.sampled_from(_STEPS[len(builder.shape)])))()
            if torch.Size(builder.shape).numel() > _LARGEST:
                builder.reduction()
        if draw(st.integers(0, 9)) == 0:
            builder.softmax()
        if not is_supported_only and draw(st.integers(0, 9)) == 0:
            builder.unsupported()
    module = settled(Network(builder.layers, builder.reads), seed)
    return RandomModule(module, sample_shape, seed, builder.is_supported)


def settled(module, seed):
    """The module in evaluation mode, with random parameters that keep the size of what passes."""
    for name, tensor, values in random_values(module, seed):
        if "running_var" in name or "factor" in name or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(0.5 + values)
        elif tensor.ndim == 1 or "offset" in name:
            tensor.copy_(0.4 * values - 0.2)
        else:
            tensor.copy_((2 * values - 1) * (3 / tensor[0].numel()) ** 0.5)
    return module.eval()


def random_values(module, seed):
    """Name, tensor and values in [0, 1) for each floating-point tensor of a module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                yield name, tensor, torch.rand(tensor.shape, generator=generator)
