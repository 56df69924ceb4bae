# SPDX-License-Identifier: Apache-2.0
"""Bad input to the command: one line that says what is wrong, the exit code of its class, and nothing is touched.

A case is a command as it would be typed in a directory that holds the files below, its exit code, and the words of its one line:
the file or option, the place, what was found, what was expected.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fedmote.cli import main
from fedmote.package import tflite_writer
from fedmote.package.boards import Board
from fedmote.package.file import build_package
from fedmote.package.graph import HeadLayer, OpKind
from fedmote.package.specimen import random_int8_graph
from fedmote.private_files import write_private

pytest.importorskip("torch")

REFUSED, USAGE, LINK = 1, 2, 3
SEED = 1647  # DEPTHWISE_CONV_2D, RELU, CONV_2D, BROADCAST_TO, MUL, RESHAPE, FULLY_CONNECTED
GELU = 150

CREDENTIALS = 'id = "a"\nsite = "lab"\nusername = "a"\npassword = "secret"\n'
PARTNER = """id = "p"
site = "lab"
model = "fedmote.lab.models:digits_cnn"
state_directory = "partner-state"
coordinator = "tcp://127.0.0.1:1"
"""
COORDINATOR = """listen = "tcp://127.0.0.1:0"
[run]
site = "lab"
name = "digits"
state_directory = "state"
partition_directory = "."
[[cells]]
name = "a"
devices = ["a"]
"""


def specimen_package() -> bytes:
    graph = random_int8_graph(SEED)
    features = int(np.prod(graph.activations[graph.output].shape))
    head = {"weight": np.ones((3, features), np.float32), "bias": np.zeros(3, np.float32)}
    layer = HeadLayer("weight", "bias", features, 3)
    return build_package(None, graph, [layer], head, {}, Board.load("posix"), "specimen", 1).to_bytes()


def model_with_a_gelu() -> bytes:
    """A sound `.tflite` file whose RELU calls itself GELU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tflite_writer.schema.BUILTIN_CODES, OpKind.RELU, GELU)
        return tflite_writer.write(random_int8_graph(SEED))


@pytest.fixture(scope="module")
def package() -> bytes:
    return specimen_package()


@pytest.fixture(scope="module")
def sound() -> bytes:
    return tflite_writer.write(random_int8_graph(SEED))


@pytest.fixture(scope="module")
def gelu() -> bytes:
    return model_with_a_gelu()


@pytest.fixture
def files(tmp_path, monkeypatch, package, sound, gelu) -> Path:
    """The working directory of a case: good files and bad ones, and results of earlier work that must survive."""
    directory = tmp_path / "work"
    directory.mkdir()
    flipped = bytearray(package)
    flipped[len(flipped) // 2] ^= 0x10
    for name, content in {
        "good.fmp": package,
        "short.fmp": package[:1000],
        "flipped.fmp": bytes(flipped),
        "empty.fmp": b"",
        "gelu.tflite": gelu,
        "int8.tflite": sound,
        "short.tflite": gelu[:200],
        "empty.npz": b"",
        "earlier.fmp": b"an earlier package",
        "earlier.npy": b"earlier results",
        "image": b"an earlier image",
    }.items():
        (directory / name).write_bytes(content)
    rng = np.random.default_rng(1)
    x = rng.random((12, 1, 8, 8)).astype(np.float32)
    np.save(directory / "x.npy", x)
    np.savez(directory / "good.npz", x=x, y=np.arange(12) % 3, subject=np.arange(12))
    np.savez(directory / "int8.npz", x=np.zeros((12, 64), np.int8), y=np.arange(12) % 3)
    np.savez(directory / "no-y.npz", x=x, subject=np.arange(12))
    np.savez(directory / "no-x.npz", y=np.arange(12) % 3)
    for name, text in {
        "a.toml": CREDENTIALS,
        "odd-a.toml": CREDENTIALS + 'passwort = "secret"\n',
        "partner.toml": PARTNER,
        "odd-partner.toml": PARTNER + "sede = 1\n",
        "data-partner.toml": PARTNER + 'data = "no-y.npz"\n',
        "coordinator.toml": COORDINATOR,
        "odd-coordinator.toml": COORDINATOR.replace("name = ", "nmae = ", 1),
    }.items():
        write_private(directory / name, text)
    (directory / "out").mkdir()
    (directory / "out" / "report.json").write_text("{}", encoding="utf-8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(directory)
    return directory


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Size, time of modification and content of everything, directories included."""
    found = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (status.st_size, status.st_mtime_ns, content)
    return found


CONVERT = "convert fedmote.lab.models:digits_cnn -o out"
DEVICE = "device --id a --serial pty"
RUN = "run --input x.npy --output earlier.npy"
OWNER = "--board posix --credentials a.toml"
# Place, what was found, what was expected; each case adds the file.
TRUNCATED = ["header", "has 1000 bytes", "expects"]
DAMAGED = ["at byte 12", "checksum", "expected"]
NO_OPERATOR = ["node 1", "GELU", "supported are ADD"]
NO_LABELS = ["key 'y'", "holds subject, x", "expected a .npz file with x (N, ...) and y (N,)"]
NO_NAME_KEY = ["run:", "found 'nmae'", "expected one of the keys site, name"]
NO_SEED_KEY = ["top level", "found 'sede'", "expected one of the keys id, site"]
NO_BOARD = ["board", "'esp99'", "there are: ", "posix, stm32f405"]
CASES = [
    # ---- a truncated package ------------------------------------------------------------------------------------------
    ("package verify short.fmp", REFUSED, ["short.fmp", *TRUNCATED]),
    ("package verify short.fmp --json", REFUSED, ["short.fmp", *TRUNCATED]),
    ("package show short.fmp", REFUSED, ["short.fmp", *TRUNCATED]),
    ("package show empty.fmp", REFUSED, ["empty.fmp", "header", "0 bytes", "48"]),
    (f"{RUN} --board posix short.fmp", REFUSED, ["short.fmp", *TRUNCATED]),
    (f"{DEVICE} {OWNER} --data good.npz --package short.fmp", REFUSED, ["short.fmp", *TRUNCATED]),
    # ---- a package with a flipped byte ----------------------------------------------------------------------------------
    ("package verify flipped.fmp", REFUSED, ["flipped.fmp", *DAMAGED]),
    ("package show flipped.fmp --json", REFUSED, ["flipped.fmp", *DAMAGED]),
    (f"{RUN} --board posix flipped.fmp", REFUSED, ["flipped.fmp", *DAMAGED]),
    (f"{DEVICE} {OWNER} --data good.npz --package flipped.fmp", REFUSED, ["flipped.fmp", *DAMAGED]),
    # ---- a .tflite file with an operator that is not supported, or that is none -----------------------------------------
    ("package import gelu.tflite -o earlier.fmp", REFUSED, ["gelu.tflite", *NO_OPERATOR]),
    (f"{RUN} --board posix gelu.tflite", REFUSED, ["gelu.tflite", *NO_OPERATOR]),
    (f"{RUN} --board posix gelu.tflite --logits --json", REFUSED, ["gelu.tflite", *NO_OPERATOR]),
    ("package import short.tflite -o earlier.fmp", REFUSED, ["short.tflite", "offset", "truncated"]),
    ("package import x.npy -o earlier.fmp", REFUSED, ["x.npy", "bytes 4 to 7", "not b'TFL3'"]),
    # ---- data without labels, calibration without samples, files that are something else --------------------------------
    ("demo --data no-y.npz", USAGE, ["no-y.npz", *NO_LABELS]),
    (f"{DEVICE} {OWNER} --data no-y.npz", USAGE, ["no-y.npz", *NO_LABELS]),
    ("partner data-partner.toml", USAGE, ["no-y.npz", *NO_LABELS]),
    (f"{CONVERT} --boards posix --calibration no-x.npz", USAGE, ["no-x.npz", "key 'x'", "holds y", "expected"]),
    (f"{CONVERT} --boards posix --calibration empty.npz", USAGE, ["empty.npz", "begins with b''", "expected"]),
    (f"{CONVERT} --boards posix --calibration absent.npz", USAGE, ["absent.npz", "No such file", "expected"]),
    (f"{CONVERT} --boards posix --calibration out", USAGE, ["--calibration out", "Is a directory", "expected"]),
    (f"{DEVICE} {OWNER} --data x.npy", USAGE, ["x.npy", "begins with", "not b'PK'", "expected a .npz file"]),
    ("run --input good.npz --output earlier.npy --board posix good.fmp", USAGE, ["good.npz", "begins with", "a .npy file"]),
    (f"{RUN} --board posix good.fmp", USAGE, ["x.npy", "shape (1, 8, 8)", "input is (6, 11, 8)"]),
    (f"{DEVICE} {OWNER} --data good.npz --package good.fmp", USAGE, ["good.npz", "shape (1, 8, 8)", "input is (6, 11, 8)"]),
    # ---- a configuration with a key that nobody knows -------------------------------------------------------------------
    ("serve odd-coordinator.toml", USAGE, ["odd-coordinator.toml", *NO_NAME_KEY]),
    ("config check odd-coordinator.toml", USAGE, ["odd-coordinator.toml", *NO_NAME_KEY]),
    ("config show odd-coordinator.toml --json", USAGE, ["odd-coordinator.toml", *NO_NAME_KEY]),
    ("rounds list --config odd-coordinator.toml", USAGE, ["odd-coordinator.toml", *NO_NAME_KEY]),
    ("checkpoint list --config odd-coordinator.toml", USAGE, ["odd-coordinator.toml", *NO_NAME_KEY]),
    ("partner odd-partner.toml", USAGE, ["odd-partner.toml", *NO_SEED_KEY]),
    ("config check partner.toml odd-partner.toml", USAGE, ["odd-partner.toml", *NO_SEED_KEY]),
    ("partner partner.toml --set sede=1", USAGE, ["--set", *NO_SEED_KEY]),
    ("serve coordinator.toml --set run.rounds=many", USAGE, ["--set", "run.rounds", "found 'many'", "expected an integer"]),
    (f"{DEVICE} --board posix --credentials odd-a.toml --data good.npz", USAGE,
     ["odd-a.toml", "top level", "found 'passwort'", "expected one of the keys"]),
    # ---- a board that does not exist ------------------------------------------------------------------------------------
    (f"{CONVERT} --boards posix,esp99 --calibration good.npz", USAGE, NO_BOARD),
    ("build --board esp99 -o image", USAGE, NO_BOARD),
    (f"{RUN} --board esp99 good.fmp", USAGE, NO_BOARD),
    (f"{DEVICE} --board esp99 --credentials a.toml --data good.npz", USAGE, NO_BOARD),
    ("demo --boards esp99", USAGE, NO_BOARD),
    ("package import gelu.tflite -o earlier.fmp --board esp99", USAGE, NO_BOARD),
    # ---- results that cannot be written where they are wanted -----------------------------------------------------------
    ("package import int8.tflite --classes 3 -o out", USAGE, ["out: cannot be written", "Is a directory", "unchanged"]),
    ("package import int8.tflite --classes 3 -o absent/new.fmp", USAGE, ["absent/new.fmp: cannot be written", "No such file"]),
    (f"{CONVERT} --boards posix --calibration good.npz -o image", USAGE, ["-o image", "found a file", "expected a directory"]),
    # ---- a link that is not there ---------------------------------------------------------------------------------------
    (f"device --id a --serial no-port {OWNER} --data int8.npz", LINK, ["'no-port'", "no such serial port", "expected"]),
    (f"device --id a --serial image {OWNER} --data int8.npz", LINK, ["'image'", "no such serial port", "expected"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "code", "words"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_gives_one_line_its_exit_code_and_changes_nothing(command, code, words, files, capfd):
    before = snapshot(files)

    assert main(shlex.split(command)) == code

    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fedmote: ")
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert snapshot(files) == before
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
