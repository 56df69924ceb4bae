# SPDX-License-Identifier: Apache-2.0
"""Figures to compare with, core by core: what others need, what is required of us, what we aim for.

Kernels: TensorFlow Lite Micro 90b983c2 with CMSIS-NN 4ab83cc3 at -O2, arm-none-eabi-gcc 12.2.1, whole model with its SOFTMAX,
counted in the same emulator in the same way. Start-up is AllocateTensors(). Flash is .text and .rodata of the int8-only build
without the model. Head: AIfES, one step of SGD of a dense softmax layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Figure:
    """One number of a peer and our targets for it; None where there is none.

    Attributes:
        peer: what the peer needs.
        required: what we must not exceed.
        aim: what we would like not to exceed.
    """

    peer: int | None = None
    required: int | None = None
    aim: int | None = None

    def verdict(self, value: float) -> str:
        """How a measured value stands to the targets, or to the peer where there are none."""
        if self.aim is not None and value <= self.aim:
            return "aim met"
        if self.required is not None:
            return "required met" if value <= self.required else "MISSED"
        if self.peer is not None:
            return "below peer" if value < self.peer else "ABOVE PEER"
        return ""

    def ratio(self, value: float) -> float | None:
        """The value as a part of the peer's."""
        return None if self.peer is None else value / self.peer


NO_FIGURE: Final = Figure()

# By core, model and column of `fedmote bench kernels`.
KERNELS: Final[dict[str, dict[str, dict[str, Figure]]]] = {
    "cortex-m0": {
        "kws_ref_model": {"instructions": Figure(29_004_277, 24_000_000, 18_000_000)},
        "mobilenet_v1_025_96": {"instructions": Figure(86_904_220), "startup_instructions": Figure(7_067_846, 50_000, 0)},
        "pretrainedResnet_quant": {"instructions": Figure(97_557_663)},
        "ad01_int8": {"instructions": Figure(1_763_069)},
    },
    "cortex-m4": {
        "kws_ref_model": {
            "instructions": Figure(7_699_891, 6_200_000, 4_600_000),
            "startup_instructions": Figure(788_672, 50_000, 0),
            "arena_bytes": Figure(22_820, 17_000, 16_000),
            "flash_bytes": Figure(53_360, 20_000, 12_000),
        },
        "mobilenet_v1_025_96": {
            "instructions": Figure(24_101_961, 19_000_000, 10_000_000),
            "startup_instructions": Figure(3_520_711, 50_000, 0),
            "arena_bytes": Figure(100_708, 58_000, 55_296),
            "flash_bytes": Figure(53_360),
        },
        "pretrainedResnet_quant": {
            "instructions": Figure(29_863_351, 24_000_000, 18_000_000),
            "startup_instructions": Figure(539_626, 50_000, 0),
            "arena_bytes": Figure(54_996, 51_000, 49_152),
            "flash_bytes": Figure(51_184),
        },
        "ad01_int8": {
            "instructions": Figure(582_943, 500_000, 450_000),
            "startup_instructions": Figure(83_125, 50_000, 0),
            "arena_bytes": Figure(2_580),
            "flash_bytes": Figure(28_896),
        },
    },
    "cortex-m7": {
        "kws_ref_model": {"instructions": Figure(7_645_708), "startup_instructions": Figure(259_771, 50_000, 0)},
        "mobilenet_v1_025_96": {"instructions": Figure(24_025_588), "startup_instructions": Figure(1_017_543, 50_000, 0)},
        "pretrainedResnet_quant": {"instructions": Figure(30_026_194)},
        "ad01_int8": {"instructions": Figure(583_244)},
    },
    "cortex-m55": {
        "kws_ref_model": {
            "instructions": Figure(1_815_807, 1_800_000, 1_200_000),
            "arena_bytes": Figure(27_348),
            "flash_bytes": Figure(44_768),
        },
        "mobilenet_v1_025_96": {"instructions": Figure(6_558_335), "arena_bytes": Figure(100_772)},
        "pretrainedResnet_quant": {
            "instructions": Figure(4_911_695),
            "arena_bytes": Figure(55_028),
            "flash_bytes": Figure(41_488),
        },
        "ad01_int8": {"instructions": Figure(149_995), "arena_bytes": Figure(9_268), "flash_bytes": Figure(20_976)},
    },
}

# By (arithmetic, inputs, outputs, batch) and column of `fedmote bench head`: plain SGD on one layer. The peer of integers is
# the peer's float32 code on a core without FPU, Cortex-M0.
HEAD: Final[dict[tuple[str, int, int, int], dict[str, Figure]]] = {
    ("float32", 64, 10, 1): {
        "instructions_per_sample": Figure(77_503, 8_500, 5_000),
        "extra_ram_bytes": Figure(5_536, 400, 0),
    },
    ("float32", 128, 10, 1): {"instructions_per_sample": Figure(152_127)},
    ("float32", 256, 10, 1): {"instructions_per_sample": Figure(301_375)},
    ("float32", 256, 2, 1): {"instructions_per_sample": Figure(66_383)},
    ("float32", 64, 10, 8): {"instructions_per_sample": Figure(32_893)},
    ("int16", 64, 10, 1): {
        "instructions_per_sample": Figure(285_589, 17_300, 10_000),
        "extra_ram_bytes": Figure(5_536, 400, 0),
    },
    ("int16", 256, 10, 1): {"instructions_per_sample": Figure(1_060_974)},
}
