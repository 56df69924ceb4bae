# SPDX-License-Identifier: Apache-2.0
"""Named float32 tensors: what a checkpoint and a full update are made of, and their bytes.

The file format is safetensors (8 bytes of header length, a JSON header, the raw little-endian values). It is written
here and not by the library, because a checkpoint must have one sequence of bytes: the library keeps metadata in a hash
map, so that two files of equal content can differ. It is read by the library, which validates every offset before
anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from fedmote.errors import ConfigError

# Named float32 tensors of a checkpoint, by their torch state_dict names.
Tensors = dict[str, NDArray[np.float32]]
# Name of an activation -> (minimum, maximum) that were observed there, in real units.
Ranges = dict[str, tuple[float, float]]

_LENGTH_BYTES = 8
# The format asks for values at a multiple of 8; the header is padded with spaces.
_ALIGNMENT = 8
_LOOK_VALUES = 65_536


def dump_safetensors(tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write tensors as safetensors bytes: the same content gives the same bytes.

    Args:
        tensors: name to values of any shape; written as float32, in order of their names.
        metadata: text by name, kept in the header.

    Returns:
        The whole file.
    """
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    parts: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        values = np.asarray(tensors[name], dtype="<f4")
        body = values.tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + len(body)]}
        parts.append(body)
        offset += len(body)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *parts])


def load_safetensors(source: Path | str | bytes) -> Tensors:
    """Read float32 tensors from a safetensors file or from its bytes.

    Args:
        source: path of a file, or the file's bytes.

    Returns:
        Tensors by name; the arrays own their memory and can be written to.

    Raises:
        ConfigError: the file cannot be read, is no safetensors file, or holds another type than float32.
    """
    where, blob = _read(source)
    try:
        entries = safetensors.deserialize(blob)  # type: ignore[no-untyped-call]  # the library is built without stubs
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: not a safetensors file ({error})") from error
    tensors: Tensors = {}
    for name, entry in entries:
        if entry["dtype"] != "F32":
            raise ConfigError(f"{where}: tensor {name} is {entry['dtype']}, expected F32; save the model in float32")
        values = np.frombuffer(bytes(entry["data"]), dtype="<f4").astype(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return dict(sorted(tensors.items()))


def read_expected(blob: bytes, shapes: Mapping[str, tuple[int, ...]], max_header_bytes: int) -> Tensors:
    """Read a safetensors file from a stranger: everything is checked against what is expected before memory is taken for it.

    Args:
        blob: the file.
        shapes: of every tensor that may be there; the file may lack some.
        max_header_bytes: the header is not read where it is longer.

    Returns:
        Read-only views of the file's values, by name.

    Raises:
        ConfigError: not a safetensors file, or a tensor is unknown, of another type or shape, or not where it should be.
    """
    start, entries = _entries_of(blob, max_header_bytes)
    if len(entries) > len(shapes):
        raise ConfigError(f"{len(entries)} tensors, {len(shapes)} at most are expected")
    found: Tensors = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: _offset(item[1])):
        size = _check_entry(name, entry, shapes, end)
        if start + end + size > len(blob):
            raise ConfigError(f"tensor {name} ends at {end + size}, the file has {len(blob) - start} bytes of values")
        values = np.frombuffer(blob, "<f4", size // 4, start + end)
        found[name] = values.reshape(shapes[name])
        end += size
    if start + end != len(blob):
        raise ConfigError(f"{len(blob) - start} bytes of values, {end} are named by the header")
    return dict(sorted(found.items()))


def _entries_of(blob: bytes, max_header_bytes: int) -> tuple[int, dict[str, object]]:
    """Where the values begin, and the header's entries; nothing in them is checked yet."""
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if length > max_header_bytes or _LENGTH_BYTES + length > len(blob):
        raise ConfigError(f"not a safetensors file (header of {length} bytes, {max_header_bytes} at most, file of {len(blob)})")
    try:
        header = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a safetensors file ({type(error).__name__} in the header)") from error
    if not isinstance(header, dict):
        raise ConfigError("not a safetensors file (the header is no object)")
    header.pop("__metadata__", None)
    return _LENGTH_BYTES + length, header


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _offset(entry: object) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(one) is int and one >= 0 for one in offsets):
        return int(offsets[0])
    raise ConfigError("a tensor of the header has no offsets")


def _check_entry(name: str, entry: object, shapes: Mapping[str, tuple[int, ...]], start: int) -> int:
    """Bytes of a tensor that is as expected and begins at `start`."""
    assert isinstance(entry, dict)  # it has offsets
    if name not in shapes:
        raise ConfigError(f"tensor {name[:64]} is unknown")
    shape, size = shapes[name], 4 * math.prod(shapes[name])
    if entry.get("dtype") != "F32":
        raise ConfigError(f"tensor {name} is {str(entry.get('dtype'))[:16]}, expected F32")
    if entry.get("shape") != list(shape):
        raise ConfigError(f"tensor {name} has shape {str(entry.get('shape'))[:64]}, expected {shape}")
    if entry["data_offsets"] != [start, start + size]:
        raise ConfigError(f"tensor {name} stands at {str(entry['data_offsets'])[:64]}, expected {[start, start + size]}")
    return size


def load_metadata(source: Path | str | bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file or of its bytes; empty where there is none.

    Raises:
        ConfigError: the file cannot be read or has no readable header.
    """
    where, blob = _read(source)
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if len(blob) < _LENGTH_BYTES + length:
        raise ConfigError(f"{where}: not a safetensors file (header of {length} bytes, file of {len(blob)})")
    try:
        header = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (ValueError, RecursionError) as error:  # JSON is followed as deep as its brackets go
        raise ConfigError(f"{where}: not a safetensors file ({error})") from error
    found = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _read(source: Path | str | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return f"safetensors of {len(source)} bytes", source
    try:
        return str(source), Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror})") from error


def checksum(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """BLAKE2b-256 over the tensors' safetensors bytes without metadata: 32 bytes that name the content."""
    return hashlib.blake2b(dump_safetensors(tensors), digest_size=32).digest()


def shape_complaint(tensors: Mapping[str, NDArray[np.float32]], reference: Mapping[str, NDArray[np.float32]]) -> str | None:
    """Say in words which tensor the reference does not have, or has in another shape; None where all fit.

    Tensors that the reference has and `tensors` lacks are no complaint: an update covers what was trained.
    """
    for name, values in tensors.items():
        if name not in reference:
            return f"tensor {name} is unknown"
        if values.shape != reference[name].shape:
            return f"tensor {name} has shape {values.shape}, expected {reference[name].shape}"
    return None


def is_subnormal(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which values lie between zero and the smallest normal float32: cores differ in what they make of these."""
    return np.asarray((values != 0) & (np.abs(values) < np.finfo(np.float32).tiny))


def has_subnormals(values: NDArray[np.float32]) -> bool:
    """Whether any value is one; looked at block by block, since the tensor may be large."""
    flat = values.reshape(-1)
    blocks = range(0, flat.size, _LOOK_VALUES)
    return any(is_subnormal(flat[start : start + _LOOK_VALUES]).any() for start in blocks)


def without_subnormals(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values, with zero in the place of subnormal ones: no update has such values."""
    return np.where(is_subnormal(values), np.float32(0), values)


def finite_complaint(tensors: Mapping[str, NDArray[np.float32]]) -> str | None:
    """Name the first tensor with a value that is infinite or no number; None where all are finite."""
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            return f"tensor {name} is not finite"
    return None
