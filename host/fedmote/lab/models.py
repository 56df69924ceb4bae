# SPDX-License-Identifier: Apache-2.0
"""Small example models of the demonstration and of the tests.

Each function builds one module in evaluation mode, ready for `fedmote convert fedmote.lab.models:NAME`. The seed fixes
the initial parameters; the caller's random state is left as it was. Shapes are those of one sample, without the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def digits_cnn(seed: int = 0) -> nn.Module:
    """Handwritten digits: (1, 8, 8) images in [0, 1] -> 48 features -> 10 classes; 8.6 thousand parameters.

    As an int8 package with its float head it takes about 12 KB, so it fits the slot of `stm32f405`.
    """
    return seeded(lambda: _ImageNetwork(channels=(8, 16, 48), num_classes=10), seed)


def har_cnn(seed: int = 0) -> nn.Module:
    """Human activity from a phone's sensors: (9, 128) windows -> 64 features -> 6 classes; 14 thousand parameters."""
    return seeded(lambda: _SequenceNetwork(inputs=9, channels=(16, 32, 64), num_classes=6), seed)


def residual_cnn(seed: int = 0) -> nn.Module:
    """A residual block around a depthwise convolution: (3, 8, 8) images -> 128 flattened features -> 4 classes.

    The stride-2 convolution pads both ends, which TFLite's SAME does not, and the head follows a flatten: the two
    places where channels-first and channels-last models differ in more than the order of axes.
    """
    return seeded(lambda: _ResidualNetwork(channels=8, num_classes=4), seed)


def image_cnn(inputs: int, num_classes: int, seed: int = 0) -> nn.Module:
    """Images (inputs, H, W) of at least 4 x 4 pixels -> 48 features -> classes: `digits_cnn` for other data."""
    return seeded(lambda: _ImageNetwork(channels=(8, 16, 48), num_classes=num_classes, inputs=inputs), seed)


def sequence_cnn(inputs: int, num_classes: int, seed: int = 0) -> nn.Module:
    """Windows (inputs, W) of at least 8 steps -> 64 features -> classes: `har_cnn` for other data."""
    return seeded(lambda: _SequenceNetwork(inputs=inputs, channels=(16, 32, 64), num_classes=num_classes), seed)


class _ImageNetwork(nn.Module):
    """Three convolutions with batch normalisation, two of them followed by pooling, then the global average."""

    def __init__(self, channels: tuple[int, int, int], num_classes: int, inputs: int = 1) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(inputs, first, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        x = self.pool(torch.relu(self.bn3(self.conv3(x))))
        logits: Tensor = self.head(torch.flatten(self.average(x), 1))
        return logits


class _SequenceNetwork(nn.Module):
    """Three blocks of Conv1d, batch normalisation, ReLU and pooling, then the average over time."""

    def __init__(self, inputs: int, channels: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for outputs in channels:
            blocks.append(
                nn.Sequential(
                    nn.Conv1d(inputs, outputs, kernel_size=5, padding=2, bias=False),
                    nn.BatchNorm1d(outputs),
                    nn.ReLU(),
                    nn.MaxPool1d(kernel_size=2),
                )
            )
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(x).mean(dim=2))
        return logits


class _ResidualNetwork(nn.Module):
    """A strided stem, a depthwise separable block with a shortcut, pooling and a flattened head."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1)
        self.activation = nn.ReLU6()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem_bn(self.stem(x)))
        inner = self.activation(self.depthwise_bn(self.depthwise(x)))
        x = torch.relu(x + self.pointwise(inner))
        logits: Tensor = self.head(self.flatten(x))
        return logits


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `build` makes, its parameters drawn from a seed, in evaluation mode; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()
