# SPDX-License-Identifier: Apache-2.0
"""Blobs that are CBOR themselves: head updates and selected samples (device_sdk/protocol/SPEC.md, section 6)."""

from __future__ import annotations

import cbor2
import numpy as np
from numpy.typing import NDArray

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.tensors import is_subnormal, without_subnormals
from fedmote.wire.cbor import Major, Reader
from fedmote.wire.schema import Encoding, Status

_FLOAT32_LITTLE_ENDIAN = 85  # tag of RFC 8746
_RECORD_HEAD_BYTES = 12  # index, label, epoch mask

Selected = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int8]]


def encode_head_update(delta: NDArray[np.float32]) -> bytes:
    """A head update: float32 (P,), layer by layer, weights then bias, new minus received; subnormal values become zero."""
    floats = np.ascontiguousarray(without_subnormals(delta), dtype="<f4").tobytes()
    return cbor2.dumps({1: int(Encoding.F32), 2: cbor2.CBORTag(_FLOAT32_LITTLE_ENDIAN, floats)}, canonical=True)


def decode_head_update(blob: bytes, num_parameters: int | None = None) -> NDArray[np.float32]:
    """The float32 (P,) of a head update.

    Raises:
        RemoteWireError: not the strict form; UPDATE_SHAPE where P is not `num_parameters` (if given);
            UPDATE_NOT_FINITE where a value is infinite, no number, or subnormal.
    """
    reader = Reader(blob)
    _expect_keys(reader, 2)
    encoding = _number(reader, key=1)
    if encoding != Encoding.F32:
        raise RemoteWireError(Status.FIELD_RANGE, f"encoding {encoding} of a head update")
    if reader.key(1) != 2:
        raise RemoteWireError(Status.MISSING_FIELD, "key 2 of a head update")
    major, tag = reader.head()
    if major is not Major.TAG or tag != _FLOAT32_LITTLE_ENDIAN:
        raise RemoteWireError(Status.FIELD_TYPE, f"tag {_FLOAT32_LITTLE_ENDIAN} expected for the values of a head update")
    floats = _bytes(reader)
    reader.end()
    if len(floats) % 4 or num_parameters not in (None, len(floats) // 4):
        raise RemoteWireError(Status.UPDATE_SHAPE, f"{len(floats)} bytes, {num_parameters} parameters expected")
    delta = np.frombuffer(floats, dtype="<f4").astype(np.float32)
    bad = ~np.isfinite(delta) | is_subnormal(delta)
    if bad.any():
        raise RemoteWireError(Status.UPDATE_NOT_FINITE, f"{np.count_nonzero(bad)} of {delta.size} values")
    return delta


def encode_selected_samples(
    index: NDArray[np.uint32], label: NDArray[np.uint32], epoch_mask: NDArray[np.uint32], x: NDArray[np.int8]
) -> bytes:
    """Selected samples: index, label and epoch mask uint32 (n,), x int8 (n, input_bytes)."""
    if x.ndim != 2 or not index.shape == label.shape == epoch_mask.shape == (len(x),):
        raise LocalWireError(Status.ARGUMENT, f"samples of shape {x.shape} with {len(index)} indices")
    records = np.empty(len(x), _record_type(x.shape[1]))
    records["index"], records["label"], records["epoch_mask"], records["x"] = index, label, epoch_mask, x
    return cbor2.dumps({1: len(x), 2: x.shape[1], 3: records.tobytes()}, canonical=True)


def decode_selected_samples(blob: bytes, input_bytes: int | None = None) -> Selected:
    """Index, label and epoch mask uint32 (n,), x int8 (n, input_bytes) of selected samples.

    Raises:
        RemoteWireError: not the strict form; UPDATE_SHAPE where sizes do not agree with each other or with
            `input_bytes` (if given).
    """
    reader = Reader(blob)
    _expect_keys(reader, 3)
    count = _number(reader, key=1)
    width = _number(reader, key=2)
    if reader.key(2) != 3:
        raise RemoteWireError(Status.MISSING_FIELD, "key 3 of selected samples")
    content = _bytes(reader)
    reader.end()
    if width == 0 or input_bytes not in (None, width) or len(content) != count * (_RECORD_HEAD_BYTES + width):
        words = f"{count} samples of {width} bytes in {len(content)} bytes, {input_bytes} bytes per sample expected"
        raise RemoteWireError(Status.UPDATE_SHAPE, words)
    records = np.frombuffer(content, _record_type(width)) if count else np.empty(0, _record_type(min(width, 1 << 20)))
    index, label, mask = (records[name].astype(np.uint32) for name in ("index", "label", "epoch_mask"))
    return index, label, mask, np.ascontiguousarray(records["x"])


def _record_type(input_bytes: int) -> np.dtype[np.void]:
    return np.dtype([("index", "<u4"), ("label", "<u4"), ("epoch_mask", "<u4"), ("x", "i1", (input_bytes,))])


def _expect_keys(reader: Reader, count: int) -> None:
    if (found := reader.map_count()) != count:
        raise RemoteWireError(Status.MALFORMED, f"a map of {count} keys expected, {found} found")


def _number(reader: Reader, key: int) -> int:
    if reader.key(key - 1) != key:
        raise RemoteWireError(Status.MISSING_FIELD, f"key {key}")
    major, value = reader.head()
    if major is not Major.UINT:
        raise RemoteWireError(Status.FIELD_TYPE, f"key {key} is {major.name.lower()}")
    return value


def _bytes(reader: Reader) -> bytes:
    major, length = reader.head()
    if major is not Major.BYTES:
        raise RemoteWireError(Status.FIELD_TYPE, f"bytes expected, {major.name.lower()} found")
    return reader.take(length)
