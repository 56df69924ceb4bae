# SPDX-License-Identifier: Apache-2.0
"""What a conversion reads: the module that a function builds or the network in a file, its weights, the calibration samples.

Foreign errors end here: whatever a user's module or file raises becomes a ConfigError that names argument, key and expectation.
Torch is imported for torch modules, `onnx` for `.onnx` files, neither for anything else.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedmote.arrays import load_npz
from fedmote.errors import ConfigError, ConversionError
from fedmote.tensors import load_safetensors
from fedmote_convert.early_exit import Owners
from fedmote_convert.sketch import Capture

if TYPE_CHECKING:
    from torch import nn

# Keys of data files that say whose each sample is; the first that is there counts.
OWNER_KEYS = ("subject", "writer", "speaker", "record")


@dataclass(frozen=True)
class Calibration:
    """Calibration samples.

    Attributes:
        x: float32 (N, ...), in the module's own order of axes.
        y: class indices int64 (N,), or None.
        owners: whose each sample is, or None.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | None
    owners: Owners | None = None


def load_model(target: str, weights: Path | None = None) -> tuple[nn.Module | Capture, str]:
    """Read a model, by the form of its name; return it with a name of its own.

    Args:
        target: `pkg.module:build`, or the path of an `.onnx` file.
        weights: safetensors file whose tensors replace those of the model: all of a module's, any of a file's.

    Raises:
        ConfigError: what is named cannot be read, or the package that reads it is missing.
        ConversionError: the file holds no model that can be converted.
    """
    if target.lower().endswith(".onnx"):
        return _load_onnx(Path(target), weights), model_id_of(Path(target))
    try:
        module, model_id = load_module(target)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("convert needs torch for torch modules: install fedmote[torch]") from error
    if weights is not None:
        load_weights(module, weights)
    return module, model_id


def read_file(path: Path, limit: int, expected: str) -> bytes:
    """Bytes of a regular file of less than `limit` bytes; `expected` are words for messages.

    Raises:
        ConfigError: it is no file, or cannot be read.
        ConversionError: it is too large; it was not read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ConfigError(f"model {path}: found {what}, expected {expected}")
        if status.st_size >= limit:
            raise ConversionError(f"{path}: {status.st_size} bytes; a model for microcontrollers has less than {limit}")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"model {path}: cannot be read ({reason}); expected {expected}") from error


def model_id_of(path: Path) -> str:
    """The name of a model that comes as a file, fit for names of other files."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "model"


def _load_onnx(path: Path, weights: Path | None) -> Capture:
    try:
        from fedmote_convert.onnx_capture import capture_onnx
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("onnx", "google"):
            raise
        raise ConfigError("convert needs onnx for .onnx files: install fedmote[onnx]") from error
    if weights is None:
        return capture_onnx(path)
    return capture_onnx(path, load_safetensors(weights), f"--weights {weights}")


@dataclass(frozen=True)
class TrainedRanges:
    """What a quantization-aware training found.

    Attributes:
        ranges: by activation.
        weight_bits: by checkpoint tensor.
    """

    ranges: dict[str, tuple[float, float]]
    weight_bits: dict[str, int]


def load_module(target: str) -> tuple[nn.Module, str]:
    """Build the module that `pkg.module:build` names; return it with its name.

    The working directory can be imported from, as with `python -m`.

    Raises:
        ConfigError: the name, the import, the function or its result is not what was expected.
    """
    from torch import nn

    what = f"model {target!r}"
    function, name = _function(target, what, "a function that returns a torch module")
    module = _called(function, name, what)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{what}: {name}() returned {type(module).__name__}, expected a torch.nn.Module")
    return module, name.rpartition(".")[2]


def _function(target: str, what: str, expected: str) -> tuple[Callable[[], Any], str]:
    """The function that `pkg.module:name` names, and that name; `what` and `expected` are words for messages."""
    path, separator, name = target.partition(":")
    if not separator or not path or not name:
        raise ConfigError(f"{what}: expected pkg.module:build, {expected}, or an .onnx file")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(path)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ConfigError(f"{what}: {error}; expected a function of that name") from error
    except Exception as error:  # importing runs the user's own code
        raise ConfigError(f"{what}: cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise ConfigError(f"{what}: {name} is {type(found).__name__}, expected {expected}")
    return found, name


def _called(function: Callable[[], Any], name: str, what: str) -> Any:  # noqa: ANN401  # whatever it returns
    try:
        return function()
    except Exception as error:  # the user's own code
        raise ConfigError(f"{what}: {name}() raised {type(error).__name__}: {error}") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the tensors of a safetensors file into the module.

    Counters that are no parameters (`num_batches_tracked`) may be missing.

    Raises:
        ConfigError: the file cannot be read, or its tensors are not the module's.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--weights {path}: no safetensors file that can be read ({error})") from error
    state = module.state_dict()
    missing = [name for name, value in state.items() if name not in tensors and value.is_floating_point()]
    unknown = [name for name in tensors if name not in state]
    wrong = [name for name in tensors if name in state and tensors[name].shape != state[name].shape]
    for names, complaint in ((missing, "is missing"), (unknown, "is unknown to the module"), (wrong, "has another shape")):
        if names:
            raise ConfigError(f"--weights {path}: tensor {names[0]} {complaint}; expected the state_dict of the module")
    module.load_state_dict(tensors, strict=False)


def load_samples(source: Path | str) -> Calibration:
    """Read calibration samples: `pkg.module:loader` names a function, anything else is the path of an `.npz` file.

    Raises:
        ConfigError: as `load_calibration` and `load_calibration_loader`.
    """
    text = str(source)
    is_function = ":" in text and not text.endswith(".npz") and not Path(text).exists()
    return load_calibration_loader(text) if is_function else load_calibration(Path(text))


def load_calibration(path: Path) -> Calibration:
    """Read calibration samples from an `.npz` file.

    Floats of any width are read as float32, which the model computes in. Integers are refused: only who trained the model knows
    how it wants them scaled.

    Raises:
        ConfigError: no such file, no `x`, or arrays of an unsuitable type or length.
    """
    arrays = load_npz(path, ("x",), ("y", *OWNER_KEYS), "--calibration")
    place = f"--calibration {path}"
    calibration = _checked(arrays["x"], arrays.get("y"), place)
    return replace(calibration, owners=_owners(arrays, len(calibration.x), place))


def _owners(arrays: dict[str, NDArray[Any]], count: int, place: str) -> Owners | None:
    for key in OWNER_KEYS:
        if key not in arrays:
            continue
        ids = arrays[key]
        if ids.shape != (count,) or not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"{place}: {key} is {ids.dtype} {ids.shape}; expected integers ({count},), one for each of x")
        return Owners(key, ids.astype(np.int64))
    return None


def load_calibration_loader(target: str) -> Calibration:
    """Gather calibration samples from the batches of a loader, such as a `torch.utils.data.DataLoader`.

    Args:
        target: `pkg.module:loader`, a function that returns an iterable of batches, each x (n, ...) or a pair of x and
            y (n,); tensors or arrays.

    Raises:
        ConfigError: the function, or what its loader gives, is not what was expected.
    """
    what = f"--calibration {target!r}"
    expected = "a function that returns an iterable of batches x (n, ...) or (x, y)"
    function, name = _function(target, what, expected)
    xs: list[NDArray[Any]] = []
    ys: list[NDArray[Any]] = []
    try:
        for batch in _called(function, name, what):
            x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, None)
            xs.append(_as_array(x))
            ys += [] if y is None else [_as_array(y)]
        x, y = np.concatenate(xs), np.concatenate(ys) if ys else None
    except ConfigError:
        raise
    except Exception as error:  # iterating runs the user's own code
        raise ConfigError(f"{what}: {type(error).__name__}: {error}; expected {expected}") from error
    return _checked(x, y, what)


def _as_array(values: Any) -> NDArray[Any]:  # noqa: ANN401  # tensor or array
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def _checked(x: NDArray[Any], y: NDArray[Any] | None, place: str) -> Calibration:
    """Samples as a conversion takes them."""
    if x.ndim < 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        hint = "; scale integers as the model was trained, for images often x / 255" if np.issubdtype(x.dtype, np.integer) else ""
        raise ConfigError(f"{place}: x is {x.dtype} {x.shape}; expected floats (N, ...), as the model reads them{hint}")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        count = int(len(x) - np.isfinite(x).reshape(len(x), -1).all(axis=1).sum())
        raise ConfigError(
            f"{place}: x holds values that are not finite in float32 (NaN or infinite), in {count} of {len(x)} samples"
        )
    if y is None:
        return Calibration(x, None)
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{place}: y is {y.dtype} {y.shape}; expected integers ({len(x)},), one for each of x")
    return Calibration(x, y.astype(np.int64))


def load_ranges(path: Path) -> TrainedRanges:
    """Read what a quantization-aware training left (`qat.FakeQuantized.save`).

    Raises:
        ConfigError: no such file, or not of this form.
    """
    expected = 'expected {"ranges": {name: [low, high]}, "weight_bits": {name: 4 or 8}}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        bits = {str(name): int(count) for name, count in content.get("weight_bits", {}).items()}
    except OSError as error:
        raise ConfigError(f"--ranges {path}: cannot be read ({error.strerror}); {expected}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"--ranges {path}: {type(error).__name__}: {error}; {expected}") from error
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"--ranges {path}: {name} is [{low}, {high}]; expected finite numbers, the lower one first")
    return TrainedRanges(ranges, bits)
