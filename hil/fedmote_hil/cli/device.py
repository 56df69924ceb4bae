# SPDX-License-Identifier: Apache-2.0
"""`fedmote device`: one virtual device with its own data, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from fedmote.config import Credentials, load
from fedmote.errors import ConfigError, DeviceError
from fedmote.package.boards import Board, boards_with
from fedmote.package.file import Package
from fedmote.wire.regions import credentials_region, samples_region
from fedmote_hil.build import Program
from fedmote_hil.crypto import fetch
from fedmote_hil.samples import board_samples, load_data
from fedmote_hil.virtual import VirtualDevice

SUMMARY = "run a virtual device: a process or an emulated board"
EXAMPLES = """examples:
  fedmote device --board posix --id a --data x.npz --package m.fmp --credentials a.toml --broker mqtt://localhost:1883
  fedmote device --board stm32f405 --id b --data x.npz --package m.fmp --credentials b.toml --serial pty
"""
_POLL_S = 0.2  # how soon the end of the process is noticed; the device itself does not wait for it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("--board", required=True, metavar="BOARD", help=", ".join(boards_with(Program.DEVICE)))
    parser.add_argument("--id", required=True, metavar="NAME", help="the device's name; that of the credentials")
    parser.add_argument("--data", type=Path, required=True, metavar="X.npz", help="x (N, ...) and y (N,)")
    parser.add_argument("--credentials", type=Path, required=True, metavar="FILE", help="TOML: id, site, password, keys")
    link = parser.add_mutually_exclusive_group(required=True)
    link.add_argument("--broker", metavar="URL", help="mqtt://HOST:PORT")
    link.add_argument("--serial", metavar="PORT", help="serial port, tcp://HOST:PORT, or pty for a new pseudo terminal")
    parser.add_argument(
        "--package", type=Path, metavar="X.fmp", help="installed already; also quantizes samples that are not int8"
    )
    parser.add_argument("--send-samples", action="store_true", help="firmware policy: selected samples may go to the own partner")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keeps the device's files over restarts; where it has keys: FILE.state"
    )


def run(options: argparse.Namespace) -> int:
    """Starts the device and waits for its end or an interrupt."""
    device = _device(options)
    interrupted = threading.Event()
    # An interrupt as an exception could come while the device is being started, or be lost in a callback that nobody waits for.
    former = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        with device:
            _watch(device, interrupted)
            if interrupted.is_set():
                return 0
    finally:
        signal.signal(signal.SIGINT, former)
    raise DeviceError(f"device {device.id} ended with exit code {device.exit_code}: {device.log()}")


def _watch(device: VirtualDevice, interrupted: threading.Event) -> None:
    """Until it ends, or somebody interrupts."""
    sys.stderr.write(f"device {device.id} runs on board {device.board.name}; interrupt to end it\n")
    if device.link == "pty":
        sys.stdout.write(device.port + "\n")
        sys.stdout.flush()
    while device.is_running and not interrupted.wait(_POLL_S):
        pass


def _device(options: argparse.Namespace) -> VirtualDevice:
    board = Board.load(options.board)
    credentials = load(Credentials, options.credentials)
    if credentials.id != options.id:
        raise ConfigError(f"{options.credentials}: these are the credentials of {credentials.id!r}, not of {options.id!r}")
    package = None if options.package is None else Package.read(options.package)
    x, y = load_data(options.data)
    inputs = board_samples(x, package, options.data)
    samples, most = samples_region(inputs, y), board.samples_for(inputs[:1].size)
    if len(x) > most:
        raise ConfigError(f"{options.data}: {len(x)} samples, board {board.name} takes {most} of {inputs[:1].size} bytes")
    if credentials.key is not None:
        _prepare_keys(board, options.credentials)
    if credentials.verify_key is not None and not board.is_checking_signatures:
        raise ConfigError(f"{options.credentials}: verify_key: board {board.name} cannot check signatures")
    identity = credentials_region(credentials, "mqtt" if options.broker else "serial", options.send_samples)
    return VirtualDevice(
        board,
        options.id,
        samples,
        identity,
        options.broker or options.serial,
        package=None if package is None else package.device_form(),
        directory=options.state or _own_directory(options.credentials, credentials),
    )


def _prepare_keys(board: Board, file: Path) -> None:
    """A virtual device with keys needs a count of its boots, and cryptography, which is fetched where it is missing."""
    if not board.can_count_boots:
        raise ConfigError(
            f"{file}: has keys, and an emulated {board.name} has no memory that outlives a restart: it cannot count its boots; "
            "choose another board, or credentials without keys in a fleet without a registry"
        )
    fetch()


def _own_directory(file: Path, credentials: Credentials) -> Path | None:
    """Where a device with keys counts its boots if it is told nothing else; others need no place."""
    return None if credentials.key is None else file.with_suffix(".state")
