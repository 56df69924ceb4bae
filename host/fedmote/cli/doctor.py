# SPDX-License-Identifier: Apache-2.0
"""`fedmote doctor`: what is installed, what is missing, what that is needed for, and how to get it."""

from __future__ import annotations

import argparse
import grp
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmote.config import CoordinatorConfig, load
from fedmote.errors import ConfigError
from fedmote.fleet.broker_check import examine as findings_of
from fedmote.fleet.broker_files import BrokerFiles
from fedmote.fleet.registry import FILE_NAME
from fedmote.package.boards import sdk_root
from fedmote.private_files import refuse_shared
from fedmote.transport.broker import find_mosquitto

SUMMARY = "say what is installed, what is missing, and how to get it"
EXAMPLES = """examples:
  fedmote doctor                 everything, by what it is for
  fedmote doctor --json          the same for programs
  fedmote doctor --config coordinator.toml    also the files with secrets that it names: are they there, for their owner alone?
"""

_VERSION_TIMEOUT_S = 10.0
# What a machine can be for. A check belongs to one or more of them.
USES = {
    "core": "every command",
    "serve": "the coordinator and partners over MQTT",
    "partner": "a partner that trains",
    "convert": "converting torch models",
    "onnx": "converting ONNX files",
    "device": "native device processes",
    "board": "images and emulated boards",
    "demo": "the demonstration with its plot",
    "oracle": "checking kernels against TensorFlow Lite Micro",
    "serial": "boards on serial ports",
    "privacy": "runs with differential privacy, which need an accountant",
}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked for.
        is_present: was it found, in a usable version?
        version: as it calls itself, or what was found instead.
        path: where.
        needed_for: some of `USES`.
        remedy: how to get it; empty where it is there.
    """

    name: str
    is_present: bool
    version: str
    path: str
    needed_for: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class _Tool:
    name: str
    version_flag: str
    needed_for: tuple[str, ...]
    remedy: str
    find: Callable[[], Path | None] | None = None


def _beside_python(name: str) -> Path | None:
    """A tool of this Python's own environment, or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    return Path(found) if found else None


def _c_compiler() -> Path | None:
    return next((Path(found) for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


_TOOLS = (
    _Tool(
        "mosquitto", "-h", ("serve", "demo"), "apt install mosquitto (the broker; without it: direct tcp links)", find_mosquitto
    ),
    _Tool("openssl", "version", ("serve",), "apt install openssl (certificates of a broker that serves a network)"),
    _Tool("C compiler", "--version", ("device", "demo"), "apt install gcc", _c_compiler),
    _Tool("arm-none-eabi-gcc", "--version", ("board", "demo"), "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi"),
    _Tool("qemu-system-arm", "--version", ("board", "demo"), "apt install qemu-system-arm (without it: native devices only)"),
    _Tool("cmake", "--version", ("device", "board", "demo"), "pip install 'fedmote[build]'"),
    _Tool("ninja", "--version", ("device", "board", "demo"), "pip install 'fedmote[build]'"),
)

# distribution, module, uses, remedy
_PACKAGES = (
    ("numpy", "numpy", ("core",), "pip install fedmote"),
    ("cbor2", "cbor2", ("core",), "pip install fedmote"),
    ("paho-mqtt", "paho.mqtt", ("core",), "pip install fedmote"),
    ("pyserial", "serial", ("core",), "pip install fedmote"),
    ("safetensors", "safetensors", ("core",), "pip install fedmote"),
    ("torch", "torch", ("partner", "convert", "demo"), "pip install 'fedmote[torch]'"),
    ("onnx", "onnx", ("onnx",), "pip install 'fedmote[onnx]'"),
    ("scikit-learn", "sklearn", ("demo",), "pip install 'fedmote[demo]'"),
    ("matplotlib", "matplotlib", ("demo",), "pip install 'fedmote[demo]'"),
    ("dp-accounting", "dp_accounting", ("privacy",), "pip install 'fedmote[privacy]'"),
    ("tflite-micro", "tflite_micro", ("oracle",), "pip install 'fedmote[oracle]'"),
)
_LOWEST_PYTHON = (3, 11)
_LOWEST_MOSQUITTO = (2, 0)  # before it, access lists and listeners had other rules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("--for", dest="use", choices=sorted(USES), help="judge by the needs of this use alone")
    parser.add_argument("--config", type=Path, metavar="coordinator.toml", help="also examine the files with secrets of a fleet")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Looks, prints, and returns 0 where nothing is missing, 1 otherwise. Nothing is changed."""
    found = [*examine(), *(() if options.config is None else examine_fleet(options.config))]
    checks = [check for check in found if options.use is None or {options.use, "core"} & set(check.needed_for)]
    missing = [check for check in checks if not check.is_present]
    if options.json:
        content = {"is_complete": not missing, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        _print(checks, missing)
    return 1 if missing else 0


def examine() -> Iterator[Check]:
    """All checks, in the order in which one would mend them."""
    yield _python()
    for distribution, module, uses, remedy in _PACKAGES:
        yield _package(distribution, module, uses, remedy)
    for tool in _TOOLS:
        yield _tool(tool)
    yield _sdk()
    yield from _serial_ports()


def examine_fleet(path: Path) -> Iterator[Check]:
    """The files with secrets that a coordinator's configuration names; ConfigError where it cannot be loaded."""
    config = load(CoordinatorConfig, path, (), os.environ)
    if config.broker is not None and config.broker.password_file is not None:
        yield _secret("password of the coordinator", config.broker.password_file)
    security = config.security
    if security.registry is not None:
        yield _secret("registry", security.registry / FILE_NAME)
    if security.broker_files is not None:
        words = [finding.words for finding in findings_of(BrokerFiles(security.broker_files, config.run.site))]
        yield Check("broker files", not words, "", str(security.broker_files), ("serve",), "; ".join(words))
        for file in sorted((security.broker_files / "credentials").glob("*")):
            if file.is_file():
                yield _secret(f"credentials {file.name}", file)


def _secret(name: str, path: Path) -> Check:
    """A file with secrets: there, and for its owner alone."""
    if not path.is_file():
        return Check(name, False, "", str(path), ("serve",), f"{path} is missing")
    try:
        refuse_shared(path)
    except ConfigError as error:
        return Check(name, False, "", str(path), ("serve",), str(error))
    return Check(name, True, "", str(path), ("serve",), "")


def _python() -> Check:
    is_present = sys.version_info >= _LOWEST_PYTHON
    remedy = "" if is_present else f"install Python {_LOWEST_PYTHON[0]}.{_LOWEST_PYTHON[1]} or newer"
    return Check("python", is_present, platform.python_version(), sys.executable, ("core",), remedy)


def _package(distribution: str, module: str, uses: tuple[str, ...], remedy: str) -> Check:
    """A Python package, by its metadata: nothing is imported, so that a broken one cannot break the doctor."""
    try:
        version = importlib.metadata.version(distribution)
        is_present = importlib.util.find_spec(module) is not None
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        version, is_present = "", False
    return Check(distribution, is_present, version, "", uses, "" if is_present else remedy)


def _tool(tool: _Tool) -> Check:
    path = tool.find() if tool.find is not None else _beside_python(tool.name)
    if path is None:
        return Check(tool.name, False, "", "", tool.needed_for, tool.remedy)
    version = _first_line([str(path), tool.version_flag])
    if tool.name == "mosquitto" and _numbers(version) < _LOWEST_MOSQUITTO:
        wanted = ".".join(map(str, _LOWEST_MOSQUITTO))
        return Check(tool.name, False, version, str(path), tool.needed_for, f"version {wanted} or newer is needed; {tool.remedy}")
    return Check(tool.name, True, version, str(path), tool.needed_for, "")


def _numbers(version: str) -> tuple[int, ...]:
    """The version's numbers in a line like "mosquitto version 2.0.11"; none where there are none."""
    found = re.search(r"\d+(\.\d+)+", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _first_line(command: list[str]) -> str:
    """What a program says first of itself; mosquitto has no flag for it and ends with an error, so the exit code is no matter."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer: {error}"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""


def _sdk() -> Check:
    try:
        root = sdk_root()
    except ConfigError as error:
        return Check("device SDK", False, "", "", ("device", "board", "demo"), str(error))
    return Check("device SDK", True, "", str(root), ("device", "board", "demo"), "")


def _serial_ports() -> Iterator[Check]:
    """A port that is there and that we may not open is a finding; no port at all is none."""
    ports = sorted(path for pattern in ("ttyACM*", "ttyUSB*") for path in Path("/dev").glob(pattern))
    for port in ports:
        is_open = os.access(port, os.R_OK | os.W_OK)
        yield Check(f"serial port {port}", is_open, "", str(port), ("serial",), "" if is_open else _group_remedy(port))


def _group_remedy(port: Path) -> str:
    try:
        group = grp.getgrgid(port.stat().st_gid).gr_name
    except (OSError, KeyError):
        group = "dialout"
    return f"sudo usermod -aG {group} {os.environ.get('USER', '$USER')}, then log in anew"


def _print(checks: list[Check], missing: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        words = check.version or check.path if check.is_present else f"needed for: {', '.join(check.needed_for)}"
        sys.stdout.write(f"{'ok     ' if check.is_present else 'MISSING'}  {check.name:<{width}}  {words}\n")
        if check.remedy:
            sys.stdout.write(f"{'':7}  {'':<{width}}  -> {check.remedy}\n")
    sys.stdout.write("nothing is missing\n" if not missing else f"{len(missing)} missing\n")
