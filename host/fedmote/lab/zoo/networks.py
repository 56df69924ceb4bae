# SPDX-License-Identifier: Apache-2.0
"""Networks of the zoo beside `fedmote.lab.models`: those of MLPerf Tiny, and a MobileNetV2 for small images.

Each function builds one module in evaluation mode with seeded parameters. All end with one `nn.Linear` called `head`: what
is in front of it is the encoder, so that `without_head` gives other tools the same cut. Beside torch nothing foreign
is imported here: the environments of other converters load this file too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmote.errors import ConversionError
from fedmote.lab.models import seeded


def ds_cnn(num_classes: int = 12, seed: int = 0) -> nn.Module:
    """Keyword spotting of MLPerf Tiny: (1, 49, 10) MFCC -> 64 features -> classes; 23 thousand parameters, 2.7 million MACs.

    Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128, DS-CNN-S.
    """
    return seeded(lambda: _KeywordNetwork(channels=64, num_blocks=4, num_classes=num_classes), seed)


def resnet8(num_classes: int = 10, seed: int = 0) -> nn.Module:
    """Image classification of MLPerf Tiny: (3, 32, 32) -> 64 features -> classes; 78 thousand parameters, 12.5 million MACs.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, cut down to eight layers with weights.
    """
    return seeded(lambda: _ResidualNetwork(channels=(16, 32, 64), num_classes=num_classes), seed)


def mobilenet_v1(num_classes: int = 10, seed: int = 0) -> nn.Module:
    """MobileNetV1 of width 0.25: (3, 96, 96) -> 256 features -> classes; 0.2 million parameters, 7.5 million MACs.

    Howard et al., "MobileNets", arXiv:1704.04861; the network of MLPerf Tiny's visual wake words.
    """
    return seeded(lambda: _MobileNetV1(width=0.25, num_classes=num_classes), seed)


def mobilenet_v2(num_classes: int = 10, seed: int = 0) -> nn.Module:
    """Inverted residuals for small images: (3, 32, 32) -> 128 features -> classes; 37 thousand parameters.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018: its blocks, with fewer of them and
    strides for 32 x 32 pixels.
    """
    return seeded(lambda: _MobileNetV2(num_classes=num_classes), seed)


def autoencoder(seed: int = 0) -> nn.Module:
    """Anomaly detection of MLPerf Tiny: 640 spectral values -> 128 features, through 8 -> the 640 values again.

    Koizumi et al., "Description and Discussion on DCASE2020 Challenge Task 2", 2020: the baseline's autoencoder.
    """
    return seeded(lambda: _Autoencoder(inputs=640, hidden=128, bottleneck=8), seed)


def without_head(module: nn.Module) -> nn.Module:
    """A copy of the module that ends at its features: the encoder."""
    encoder = copy.deepcopy(module)
    encoder.head = nn.Identity()
    return encoder.eval()


def head_of(module: nn.Module) -> nn.Linear:
    """The last layer of a module of the zoo."""
    head = module.get_submodule("head")
    if not isinstance(head, nn.Linear):
        raise ConversionError(f"the head of {type(module).__name__} is {type(head).__name__}, expected one Linear")
    return head


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = nn.ReLU
) -> list[nn.Module]:
    """A convolution that keeps the size where its stride is 1, its normalisation and activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return layers if activation is None else [*layers, activation()]


def _separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A depthwise convolution of 3 x 3 and a pointwise one."""
    return [*_convolution(inputs, inputs, 3, stride, groups=inputs), *_convolution(inputs, outputs, 1)]


class _Classifier(nn.Module):
    """Layers, the average over the image, one dense layer."""

    def __init__(self, layers: Sequence[nn.Module], features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flatten(self.average(self.layers(x))))
        return logits


class _KeywordNetwork(_Classifier):
    """The first kernel spans 10 frames and 4 coefficients; its padding is that of TFLite's SAME, which is not symmetric."""

    def __init__(self, channels: int, num_blocks: int, num_classes: int) -> None:
        stem = [
            nn.ZeroPad2d((1, 1, 4, 5)),
            nn.Conv2d(1, channels, kernel_size=(10, 4), stride=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        blocks = [layer for _ in range(num_blocks) for layer in _separable(channels, channels)]
        super().__init__([*stem, nn.Dropout(0.2), *blocks, nn.Dropout(0.4)], channels, num_classes)


class _Residual(nn.Module):
    """Two convolutions of 3 x 3 around which the input goes, through a pointwise convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(inputs, outputs, 3, stride), *_convolution(outputs, outputs, 3, activation=None))
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.shortcut(x))


class _ResidualNetwork(_Classifier):
    def __init__(self, channels: tuple[int, int, int], num_classes: int) -> None:
        first, second, third = channels
        blocks = [_Residual(first, first, 1), _Residual(first, second, 2), _Residual(second, third, 2)]
        super().__init__([*_convolution(3, first, 3), *blocks], third, num_classes)


class _MobileNetV1(_Classifier):
    """Thirteen separable blocks; (outputs, stride) of each at width 1."""

    BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self, width: float, num_classes: int) -> None:
        channels = int(32 * width)
        layers = _convolution(3, channels, 3, stride=2)
        for outputs, stride in self.BLOCKS:
            layers += _separable(channels, int(outputs * width), stride)
            channels = int(outputs * width)
        super().__init__(layers, channels, num_classes)


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; the input is added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = _convolution(inputs, inner, 1, activation=nn.ReLU6) if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_convolution(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6),
            *_convolution(inner, outputs, 1, activation=None),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


class _MobileNetV2(_Classifier):
    """(outputs, stride, expansion) of each block."""

    BLOCKS = ((8, 1, 1), (16, 2, 6), (16, 1, 6), (24, 2, 6), (24, 1, 6), (24, 1, 6))

    def __init__(self, num_classes: int) -> None:
        channels, features = 16, 128
        layers = _convolution(3, channels, 3, activation=nn.ReLU6)
        for outputs, stride, expansion in self.BLOCKS:
            layers.append(_InvertedResidual(channels, outputs, stride, expansion))
            channels = outputs
        layers += _convolution(channels, features, 1, activation=nn.ReLU6)
        super().__init__(layers, features, num_classes)


class _Autoencoder(nn.Module):
    """Four dense layers down to the bottleneck, four up; the tenth, `head`, makes the reconstruction."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        sizes = (inputs, *(hidden,) * 4, bottleneck, *(hidden,) * 4)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, inputs)

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.head(self.layers(x))
        return reconstruction
