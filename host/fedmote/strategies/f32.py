# SPDX-License-Identifier: Apache-2.0
"""Codec: plain float32.

A device writes a head update (CBOR, section 6 of the protocol): every head parameter, new minus received, in the order of
the device, which `fedmote.package.head` turns into that of the checkpoint. A partner
writes a safetensors file: under a tensor's own name the delta of that tensor, for every tensor that it trained, and under
`range/<activation>` minimum and maximum of an activation, shape (2,).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmote.aggregation.ranges import Ranges, range_complaint
from fedmote.errors import ConfigError, RemoteWireError
from fedmote.package.head import head_tensors
from fedmote.strategies.seams import Decoded, ModelShape, Training
from fedmote.tensors import Tensors, finite_complaint, has_subnormals, read_expected
from fedmote.wire.blobs import decode_head_update
from fedmote.wire.schema import Role, Status

RANGE_PREFIX = "range/"

# CBOR around the floats of a head update: map, two keys, encoding, tag, byte string head.
_HEAD_OVERHEAD_BYTES = 16
# JSON of one tensor in a safetensors header: two offsets, shape, type, quotes; the name comes on top.
_ENTRY_BYTES = 160
_FILE_OVERHEAD_BYTES = 4096


@dataclass(frozen=True)
class Float32:
    """Updates as float32 deltas.

    Attributes:
        device: how devices train: what they leave alone is not part of their update and does not pull the mean; None: all.
    """

    device: Training | None = None

    def max_bytes(self, role: Role, model: ModelShape) -> int:
        """Exact for a device but for the CBOR heads; generous in the JSON header of a partner."""
        if role is Role.DEVICE:
            return 4 * model.num_head_parameters + _HEAD_OVERHEAD_BYTES
        values = sum(int(tensor.size) for tensor in model.tensors.values()) + 2 * len(model.ranges)
        return 4 * values + _max_header_bytes(model)

    def decode(self, role: Role, blob: bytes, model: ModelShape) -> Decoded:
        """Read an update of either role and check names, shapes and values."""
        return self._decode_head(blob, model) if role is Role.DEVICE else _decode_full(blob, model)

    def _decode_head(self, blob: bytes, model: ModelShape) -> Decoded:
        tensors = head_tensors(model.layers, decode_head_update(blob, model.num_head_parameters))
        trained = model.head if self.device is None else self.device.trained_head(model.layers)
        return Decoded({name: tensors[name] for name in model.head if name in trained}, {})


def _decode_full(blob: bytes, model: ModelShape) -> Decoded:
    shapes = {name: values.shape for name, values in model.tensors.items()}
    shapes |= {RANGE_PREFIX + name: (2,) for name in model.ranges}
    try:
        found = read_expected(blob, shapes, _max_header_bytes(model))
    except ConfigError as error:
        raise RemoteWireError(Status.UPDATE_SHAPE, str(error)) from error
    tensors = {name: values for name, values in found.items() if not name.startswith(RANGE_PREFIX)}
    complaint = finite_complaint(found) or _subnormal_complaint(found)
    if complaint:
        raise RemoteWireError(Status.UPDATE_NOT_FINITE, complaint)
    return Decoded(tensors, _ranges(found, model))


def _subnormal_complaint(tensors: Tensors) -> str | None:
    return next((f"tensor {name} has subnormal values" for name, values in tensors.items() if has_subnormals(values)), None)


def _max_header_bytes(model: ModelShape) -> int:
    """Of an honest partner's file, generously."""
    names = [*model.tensors, *(RANGE_PREFIX + name for name in model.ranges)]
    return sum(_ENTRY_BYTES + 6 * len(name) for name in names) + _FILE_OVERHEAD_BYTES


def _ranges(found: Tensors, model: ModelShape) -> Ranges:
    ranges = {
        name.removeprefix(RANGE_PREFIX): (float(values[0]), float(values[1]))
        for name, values in found.items()
        if name.startswith(RANGE_PREFIX)
    }
    complaint = range_complaint(model.ranges, ranges)
    if complaint:
        raise RemoteWireError(Status.UPDATE_SHAPE, complaint)
    ranges.pop(model.input, None)
    return ranges
