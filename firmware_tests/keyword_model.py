# SPDX-License-Identifier: Apache-2.0
"""The depthwise separable network of MLPerf Tiny's keyword spotting, for `fedmote convert firmware_tests.keyword_model:build`."""

import torch
from torch import Tensor, nn

CHANNELS, BLOCKS, CLASSES = 64, 4, 20


class KeywordNetwork(nn.Module):
    """(1, 49, 10) coefficients -> 64 channels of 25 x 5 pixels, four separable blocks, their mean -> 20 words.

    Source: C. Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021; Y. Zhang et al., "Hello Edge", 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, CHANNELS, (10, 4), stride=2, bias=False)]
        layers += [nn.BatchNorm2d(CHANNELS), nn.ReLU()]
        for _ in range(BLOCKS):
            layers += [
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
                nn.BatchNorm2d(CHANNELS),
                nn.ReLU(),
            ]
            layers += [nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(dim=(2, 3)))
        return logits


def build() -> nn.Module:
    """The network in evaluation mode, with the same first parameters every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KeywordNetwork().eval()
