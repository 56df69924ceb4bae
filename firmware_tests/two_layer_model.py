# SPDX-License-Identifier: Apache-2.0
"""A small model for digits whose head has two layers, for `fedmote convert firmware_tests.two_layer_model:build --cut 6`."""

import torch
from torch import nn

CUT = "6"  # the Flatten
HEAD_LAYERS = ("7", "9")


def build() -> nn.Module:
    """(1, 8, 8) images -> 64 features -> 24 hidden units -> 10 classes, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        convolutions += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
