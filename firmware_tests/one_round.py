# SPDX-License-Identifier: Apache-2.0
"""One small package, forty samples and a round of them: what the tests of the client share, with its twin in NumPy."""

import struct
import zlib

import cbor2
import numpy as np
from scipy.stats import rankdata

from fedmote.wire.schema import Kind, Phase
from firmware_tests.device_bench import Device
from firmware_tests.native import OpenPackage
from firmware_tests.package_builder import Builder, assemble, head_section
from firmware_tests.scripted_peers import Peers
from firmware_tests.test_select import draw

INPUTS, FEATURES, CLASSES, SAMPLES = 16, 8, 3, 40
PARAMETERS = CLASSES * FEATURES + CLASSES
FEATURE_SCALE, FEATURE_ZERO_POINT = 0.02, -7
MODEL_HANDLE, HEAD_HANDLE = 7, 0xFFFFFFF0


def build(version: int = 0, filler: int = 6000, width: int = FEATURES) -> bytes:
    """A package of one dense layer; the filler makes it take more than one window of chunks."""
    rng = np.random.default_rng(version)
    builder = Builder(INPUTS)
    weights = rng.integers(-127, 128, (width, INPUTS)).astype(np.int8)
    constants = (
        weights,
        rng.integers(-500, 500, width).astype(np.int32),
        *(np.full(width, value, np.int32) for value in (1 << 30, -6)),
    )
    features = builder.dense(builder.input_offset, INPUTS, width, constants, (0, FEATURE_ZERO_POINT, -128, 127))
    builder.constant(np.full(filler, version, np.int8))
    head = head_section(rng.normal(size=(CLASSES, width)) * 0.1, np.zeros(CLASSES))
    return assemble(builder.sections(features, width, head, FEATURE_SCALE, FEATURE_ZERO_POINT))


def package_head(package: bytes) -> np.ndarray:
    """Its float32 parameters: they are the end of the head section, the last one."""
    _, offset, size, _ = struct.unpack_from("<4I", package, 48 + 3 * 16)
    return np.frombuffer(package[offset : offset + size][-4 * PARAMETERS :], "<f4")


def data(count: int = SAMPLES, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (count, INPUTS)).astype(np.int8), rng.integers(0, CLASSES, count)


def plan_for(package: bytes, **changes: int | bytes) -> dict[str, int | bytes]:
    plan = {
        "phase": int(Phase.SIMULTANEOUS),
        "version": 4,
        "remaining_ms": 120_000,
        "model_hash": package[16:48],
        "model_handle": MODEL_HANDLE,
        "model_size": len(package),
        "seed": 42,
        "epochs": 4,
        "batch": 8,
        "learning_rate_micro": 50_000,
        "momentum_micro": 900_000,
        "alpha_milli": 1000,
        "beta_milli": 3000,
        "is_sending_samples": 1,
    }
    return {name: value for name, value in (plan | changes).items() if value is not None}


PACKAGE = build()


def bench(
    package: bytes = PACKAGE, rounds: int = 1, changes: dict[str, int] | None = None, **options: object
) -> tuple[Device, Peers]:
    """A device with 40 samples, and its peers with a plan for each round."""
    return Device(*data(), **options), Peers(plan_for(package, **(changes or {})), {MODEL_HANDLE: package}, rounds=rounds)  # type: ignore[arg-type]


def finish(device: Device, peers: Peers, **options: int) -> None:
    """Until the last round is acknowledged and the partner has its samples."""
    has_samples = bool(peers.plan.get("is_sending_samples")) and peers.has_partner
    peers.run(
        device,
        lambda: peers.round > peers.rounds and device.state == "idle" and (not has_samples or len(peers.samples) == peers.rounds),
        **options,
    )


class Twin:
    """What a device does in a round, in NumPy: groups exactly, the head in float64."""

    def __init__(self, package: bytes, plan: dict[str, int | bytes], head: np.ndarray, identifier: str = "board-1") -> None:
        self.x, self.y = data()
        self.plan = plan
        features = OpenPackage(package).encode(self.x).astype(np.float64)
        self.features = (features - FEATURE_ZERO_POINT) * FEATURE_SCALE
        self.head = head.astype(np.float64)
        loss, norm = self.losses()
        self.mean_loss = loss.mean()
        self.rank, norm_rank = (rankdata(values, "min") for values in (loss, norm))
        u, v = self.rank / SAMPLES, norm_rank / SAMPLES
        alpha, beta, gamma = (int(plan.get(f"{name}_milli", 0)) / 1000 for name in ("alpha", "beta", "gamma"))
        limit = SAMPLES * int(plan.get("gain_milli", 1000)) // 1000
        device = zlib.crc32(identifier.encode())
        self.own, self.partner = np.zeros((2, int(plan["epochs"]), SAMPLES), bool)
        for epoch in range(int(plan["epochs"])):
            for i in range(limit):
                draws = [draw(int(plan["seed"]), device, epoch, i, k) / 2**32 for k in range(3)]
                dropped = alpha > 0 and draws[0] < (1 - u[i]) ** alpha
                high = beta > 0 and draws[1] < u[i] ** beta
                more = gamma > 0 and draws[2] < v[i] ** gamma
                order = plan.get("gamma_order", 0)
                self.partner[epoch, i] = (high and (more or gamma == 0)) if order else (high or (not dropped and more))
                self.own[epoch, i] = not dropped and not self.partner[epoch, i]

    def layers(self, head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return head[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), head[CLASSES * FEATURES :]

    def probabilities(self, index: np.ndarray) -> np.ndarray:
        weight, bias = self.layers(self.head)
        z = self.features[index] @ weight.T + bias
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(SAMPLES)
        p = self.probabilities(index)
        error = p - np.eye(CLASSES)[self.y]
        return -np.log(p[index, self.y]), np.linalg.norm(self.features, axis=1) * np.linalg.norm(error, axis=1)

    def train(self) -> np.ndarray:
        """The update (PARAMETERS,); `loss_after` becomes the mean loss of the last epoch that has samples."""
        start, velocity = self.head.copy(), np.zeros(PARAMETERS)
        self.loss_after = np.float64(np.nan)
        rate, momentum = int(self.plan["learning_rate_micro"]) / 1e6, int(self.plan["momentum_micro"]) / 1e6
        for own in self.own:
            selected = np.flatnonzero(own)
            losses: list[float] = []
            for first in range(0, len(selected), int(self.plan["batch"])):
                index = selected[first : first + int(self.plan["batch"])]
                p = self.probabilities(index)
                losses += [-np.log(p[i, label]) for i, label in enumerate(self.y[index])]
                error = (p - np.eye(CLASSES)[self.y[index]]) / len(index)
                gradient = np.concatenate([(error.T @ self.features[index]).ravel(), error.sum(0)])
                velocity = momentum * velocity + gradient
                self.head = self.head - rate * velocity
            self.loss_after = np.mean(losses) if losses else self.loss_after
        return self.head - start


def head_update(blob: bytes) -> np.ndarray:
    """The floats of a head update, its form checked."""
    content = cbor2.loads(blob)
    assert cbor2.dumps(content, canonical=True) == blob
    assert content[1] == 1
    assert content[2].tag == 85
    return np.frombuffer(content[2].value, "<f4")


def sample_records(blob: bytes) -> list[tuple[int, int, int, bytes]]:
    """(index, label, epochs, x) of each record of a samples blob."""
    content = cbor2.loads(blob)
    assert cbor2.dumps(content, canonical=True) == blob
    assert content[2] == INPUTS
    records = content[3]
    assert len(records) == content[1] * (12 + INPUTS)
    return [
        (*struct.unpack_from("<3I", records, at), records[at + 12 : at + 12 + INPUTS])
        for at in range(0, len(records), 12 + INPUTS)
    ]


def undisturbed() -> tuple[bytes, bytes, int]:
    """Update, samples and number of frames of a round without accidents."""
    device, peers = bench()
    finish(device, peers)
    return peers.updates[1][0], peers.samples[1][0], peers.frames


def refusals(peers: Peers) -> list[dict[str, object]]:
    return [packet.fields for packet in peers.heard if packet.kind == Kind.REFUSE]


def until_refusal(device: Device, peers: Peers) -> dict[str, object]:
    peers.run(device, lambda: bool(refusals(peers)))
    return refusals(peers)[0]
