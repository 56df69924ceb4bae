# SPDX-License-Identifier: Apache-2.0
"""Finds the smallest arena of TensorFlow Lite Micro for a file; a program.

    python arena_worker.py MODEL.tflite STEP LIMIT

Sizes are multiples of STEP up to LIMIT, all in bytes. Prints one JSON object. Every attempt is a child of its own: in an arena
that does not even hold its records the interpreter crashes instead of refusing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tflite_micro.python.tflite_micro import runtime


def is_enough(tflite: bytes, arena_bytes: int) -> bool:
    """Whether all tensors can be allocated."""
    child = os.fork()
    if child == 0:
        try:
            runtime.Interpreter.from_bytes(tflite, arena_size=arena_bytes)
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main(arguments: list[str]) -> None:
    """Halve until one step is left."""
    tflite, step, limit = Path(arguments[0]).read_bytes(), int(arguments[1]), int(arguments[2])
    too_small, enough = 0, limit // step
    if not is_enough(tflite, limit):
        raise ValueError(f"{limit} bytes are too small an arena for {arguments[0]}")
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if is_enough(tflite, middle * step):
            enough = middle
        else:
            too_small = middle
    sys.stdout.write(json.dumps({"bytes": enough * step}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
