# SPDX-License-Identifier: Apache-2.0
"""What a conversion reads: the module that a function builds, its weights, the calibration samples.

Foreign errors end here: whatever a user's module or file raises becomes a ConfigError that names argument, key and expectation.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedmote.arrays import load_npz
from fedmote.errors import ConfigError
from fedmote_convert.early_exit import Owners

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


def load_module(target: str) -> tuple[nn.Module, str]:
    """Build the module that `pkg.module:build` names; return it with its name.

    The working directory can be imported from, as with `python -m`.

    Raises:
        ConfigError: the name, the import, the function or its result is not what was expected.
    """
    path, separator, name = target.partition(":")
    if not separator or not path or not name:
        raise ConfigError(f"model {target!r}: expected pkg.module:build, a function that returns a torch module")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(path)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ConfigError(f"model {target!r}: {error}; expected a function of that name") from error
    except Exception as error:  # importing runs the user's own code
        raise ConfigError(f"model {target!r}: cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(found):
        raise ConfigError(f"model {target!r}: {name} is {type(found).__name__}, expected a function that returns a torch module")
    try:
        module = found()
    except Exception as error:  # so does building
        raise ConfigError(f"model {target!r}: {name}() raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model {target!r}: {name}() returned {type(module).__name__}, expected a torch.nn.Module")
    return module, name.rpartition(".")[2]


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the tensors of a safetensors file into the module.

    Counters that are no parameters (`num_batches_tracked`) may be missing.

    Raises:
        ConfigError: the file cannot be read, or its tensors are not the module's.
    """
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


def load_calibration(path: Path) -> Calibration:
    """Read calibration samples from an `.npz` file.

    Raises:
        ConfigError: no such file, no `x`, or arrays of an unsuitable type or length.
    """
    arrays = load_npz(path, ("x",), ("y", *OWNER_KEYS), "--calibration")
    x = arrays["x"]
    if x.ndim < 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"--calibration {path}: x is {x.dtype} {x.shape}; expected floats (N, ...), as the module reads them")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ConfigError(f"--calibration {path}: x holds values that are not finite in float32")
    if "y" not in arrays:
        return Calibration(x, None)
    y = arrays["y"]
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"--calibration {path}: y is {y.dtype} {y.shape}; expected integers ({len(x)},), one for each of x")
    return Calibration(x, y.astype(np.int64), _owners(arrays, len(x), path))


def _owners(arrays: dict[str, NDArray[Any]], count: int, path: Path) -> Owners | None:
    for key in OWNER_KEYS:
        if key not in arrays:
            continue
        ids = arrays[key]
        if ids.shape != (count,) or not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"--calibration {path}: {key} is {ids.dtype} {ids.shape}; expected integers ({count},)")
        return Owners(key, ids.astype(np.int64))
    return None
