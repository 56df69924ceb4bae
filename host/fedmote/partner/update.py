# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint and received samples to an update file: what happens between two messages, with files as bytes.

A checkpoint file carries the host manifest of the model in its metadata: the template of the encoder, the input
quantization that the devices' samples are written in, and the order of the input's axes. So a partner needs the torch module,
the checkpoint, and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedmote.arrays import load_npz
from fedmote.errors import ConfigError, PackageError, RemoteWireError
from fedmote.package.execute import observe
from fedmote.package.fold import bind
from fedmote.package.graph import Activations, Ranges, Tensors
from fedmote.package.host_manifest import HostManifest
from fedmote.package.inputs import arrange, restore
from fedmote.package.quantize import activation_quantization, dequantize_values, observation_points
from fedmote.partner.session import Offer, Trained
from fedmote.partner.training import Recipe, Samples, train, write_tensors
from fedmote.store.checkpoints import MANIFEST_KEY
from fedmote.strategies.f32 import RANGE_PREFIX
from fedmote.tensors import dump_safetensors, load_metadata, load_safetensors, without_subnormals
from fedmote.wire.blobs import decode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import Loss, Status

_MICRO = 1_000_000
_U32_MAX = 0xFFFFFFFF


def read_manifest(checkpoint: bytes) -> HostManifest:
    """The host manifest in a checkpoint's metadata; RemoteWireError where there is none, since nothing can be trained then."""
    text = load_metadata(checkpoint).get(MANIFEST_KEY)
    if text is None:
        raise RemoteWireError(Status.PACKAGE_SECTION, "the checkpoint carries no host manifest")
    try:
        return HostManifest.from_bytes(text.encode())
    except PackageError as error:
        raise RemoteWireError(Status.PACKAGE_SECTION, str(error)) from error


def from_device(manifest: HostManifest, flat: NDArray[np.int8]) -> NDArray[np.float32]:
    """A device's samples int8 (n, input_bytes), channels last -> float32 (n, ...) in the torch layout of the model.

    Raises:
        RemoteWireError: the samples have another size than the model's input.
    """
    template = manifest.template
    if template is None:
        raise RemoteWireError(Status.PACKAGE_SECTION, "the model has no template: it cannot be trained here")
    shape = template.activations[template.input].shape[1:]
    if flat.shape[1] != int(np.prod(shape)):
        raise RemoteWireError(Status.UPDATE_SHAPE, f"samples of {flat.shape[1]} bytes, the model's input has shape {shape}")
    quantization = activation_quantization(template.input, *manifest.ranges[template.input])
    x = dequantize_values(Activations(template.input, (1, *shape), quantization), flat).reshape(-1, *shape)
    return np.asarray(restore(x, manifest.input_layout), np.float32)


def samples_of(manifest: HostManifest, offer: Offer) -> Samples:
    """The samples of a device's offer; RemoteWireError where they do not fit the model."""
    _, labels, epoch_mask, flat = decode_selected_samples(offer.blob)
    num_classes = manifest.head[-1].outputs
    if len(labels) and int(labels.max()) >= num_classes:
        raise RemoteWireError(Status.FIELD_RANGE, f"label {labels.max()} of {offer.device}, the model has {num_classes} classes")
    return Samples(from_device(manifest, flat), labels.astype(np.int64), epoch_mask)


def load_own_samples(path: Path) -> Samples:
    """The partner's own `.npz` with `x` (n, ...) in torch layout and `y` (n,); they take part in every epoch.

    Raises:
        ConfigError: no such file, or not of this form.
    """
    arrays = load_npz(path)
    x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    if y.ndim != 1 or len(x) != len(y):
        raise ConfigError(f"{path}: x {x.shape} and y {y.shape} do not belong together")
    return Samples.of_all_epochs(x, y)


class Trainer:
    """Answers a `Train` action. Slow: to be called in a thread of its own, one call at a time.

    Args:
        factory: makes the torch module of the whole model.
        own: the partner's own samples, or None.
        seed: of the partner; one of the words that seed the order of the samples.
    """

    def __init__(self, factory: Callable[[], nn.Module], own: Samples | None, seed: int) -> None:
        self._factory = factory
        self._own = own
        self._seed = seed

    def update(self, id: str, plan: Message, checkpoint: bytes, offers: Sequence[Offer]) -> Trained:
        """Train and write the update file.

        Without a single sample the update is empty: it says that this partner is done, and weighs nothing.

        Raises:
            RemoteWireError: checkpoint or samples do not fit the model.
            ConfigError: the partner's module is not the checkpoint's.
        """
        manifest = read_manifest(checkpoint)
        parts = [samples_of(manifest, offer) for offer in offers] + ([self._own] if self._own is not None else [])
        if not sum(len(part) for part in parts):
            return Trained(dump_safetensors({}), {"num_examples": 0, "trained": 0})
        samples = Samples.joined([part for part in parts if len(part)])
        base = load_safetensors(checkpoint)
        model = self._factory()
        write_tensors(model, of_module(model, base, manifest))
        seed = (plan["seed"], self._seed, zlib.crc32(id.encode()))
        recipe = recipe_of(plan, seed)
        outcome = train(model, samples, recipe)
        update = {name: after - base[name] for name, after in outcome.tensors.items()}
        update |= range_tensors(seen_ranges(manifest, outcome.tensors, samples))
        update = {name: without_subnormals(values) for name, values in update.items()}
        numbers = {
            "num_examples": samples.num_examples,
            "trained": outcome.num_trained,
            "loss_micro": micro(outcome.loss),
            "loss_after_micro": micro(outcome.loss_after),
        }
        return Trained(dump_safetensors(update), numbers)


def of_module(model: nn.Module, checkpoint: Tensors, manifest: HostManifest) -> Tensors:
    """The checkpoint without the head of a form that leaves the model early.

    Its layers are none of the module's: devices train them, the update of a partner does not cover them.
    """
    own = model.state_dict().keys()
    head = {name for layer in manifest.head for name in (layer.weight, layer.bias)}
    return {name: values for name, values in checkpoint.items() if name in own or name not in head}


def recipe_of(plan: Message, seed: tuple[int, ...]) -> Recipe:
    """How a plan says to train."""
    return Recipe(
        plan["epochs"],
        plan["batch"],
        plan["learning_rate_micro"] / _MICRO,
        plan["momentum_micro"] / _MICRO,
        seed,
        plan["weight_decay_micro"] / _MICRO if "weight_decay_micro" in plan else 0.0,
        plan["clip_norm_micro"] / _MICRO if "clip_norm_micro" in plan else None,
        Loss(plan["loss"]) if "loss" in plan else Loss.CROSS_ENTROPY,
    )


def seen_ranges(manifest: HostManifest, tensors: Tensors, samples: Samples) -> Ranges:
    """Minimum and maximum of every observation point over all samples, in evaluation mode; the input's stay frozen.

    The graph that the device will run is observed, batch normalisation folded, not the torch module: so the names are those of
    the template, and so is the arithmetic.
    """
    template = manifest.template
    if template is None:
        return {}
    x = arrange(samples.x, manifest.input_layout, template.activations[template.input].shape)
    seen = observe(bind(template, tensors), x)
    return {name: seen[name] for name in observation_points(template) if name != template.input}


def range_tensors(ranges: Ranges) -> Tensors:
    """Ranges as tensors of an update: `range/<activation>` float32 (2,), minimum and maximum."""
    return {RANGE_PREFIX + name: np.array(limits, np.float32) for name, limits in ranges.items()}


def micro(value: float) -> int:
    """A loss in millionths, saturated to the field."""
    return int(min(max(0.0, value * _MICRO), _U32_MAX)) if np.isfinite(value) else _U32_MAX
