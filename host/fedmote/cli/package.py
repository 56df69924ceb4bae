# SPDX-License-Identifier: Apache-2.0
"""`fedmote package`: make, show and check partition packages, and the differences between them."""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmote.errors import ConfigError, PackageError
from fedmote.package import container
from fedmote.package.boards import Board, boards_with
from fedmote.package.difference import apply_difference, make_difference
from fedmote.package.file import Package
from fedmote.package.importer import import_tflite
from fedmote.package.plan_check import check_plan
from fedmote.package.records import Record, record_words
from fedmote.package.signature import SigningKey
from fedmote.store.durable import write_result
from fedmote.wire.schema import Opcode, Section

SUMMARY = "make a package of a .tflite file, show a package, verify it, make and apply differences"

EXAMPLES = """examples:
  fedmote package import kws.tflite -o kws.fmp                    the last dense layer becomes the head that devices train
  fedmote package import kws.tflite -o kws.fmp --classes 4        ... or a new head of 4 classes behind the same encoder
  fedmote package show kws.fmp                                    sections, operators, bytes, what it costs on each board
  fedmote package verify kws.fmp                                  every check of a device, and those of a host
  fedmote package diff old.fmp new.fmp -o new.fmd                 what a device needs that has the old one
  fedmote package patch old.fmp new.fmd -o new.fmp                what it makes of it: the new device form
  fedmote package key signing.key                                 a new key of the operator, to sign packages with
"""
_DIFF_EXAMPLE = """example:
  fedmote package diff kws-v6.fmp kws-v7.fmp -o kws.fmd --json

Both are taken in device form, as they lie in a slot: sections of the host do not travel. The coordinator sends a difference only
where it is smaller than the package.
"""
_PATCH_EXAMPLE = """example:
  fedmote package patch kws-v6.fmp kws.fmd -o kws-v7-device.fmp

The result is the device form, which is verified like every package, and must have the hash that the difference promises.
"""
_KEY_EXAMPLE = """example:
  fedmote package key signing.key --json

Name the file as security.signing_key in coordinator.toml: the coordinator then signs what it sends, and devices that are enrolled
or get new keys from then on take nothing else. The file has mode 0600; the verify key is public.
"""
_IMPORT_EXAMPLE = """example:
  fedmote package import kws.tflite -o kws.fmp --board stm32f405

The file must be int8 inside and out. The encoder is everything before the last FULLY_CONNECTED, which is dequantized to the
float head; a SOFTMAX behind it is dropped. --cut moves the end of the encoder, --classes replaces the head by a new one.
Everything that was done is said. Rounds can train the head of such a package; new encoder weights cannot be pushed into it.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the verbs of packages."""
    verbs = parser.add_subparsers(dest="package_verb", required=True, metavar="import|show|verify|diff|patch|key")
    _add_import(verbs)
    for name, text in (
        ("show", "what is inside, and what it costs on each board"),
        ("verify", "check everything; exit 1 if refused"),
    ):
        verb = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  fedmote package {name} kws.fmp --json\n",
            formatter_class=RawDescriptionHelpFormatter,
        )
        verb.add_argument("package", type=Path, metavar="X.fmp")
        verb.add_argument("--json", action="store_true", help="one JSON object on stdout")

    _add_two_sided(verbs, "diff", ("old", "OLD.fmp"), ("new", "NEW.fmp"), "X.fmd", _DIFF_EXAMPLE)
    _add_two_sided(verbs, "patch", ("old", "OLD.fmp"), ("difference", "X.fmd"), "NEW.fmp", _PATCH_EXAMPLE)
    text = "make a key of the operator, to sign packages with"
    key = verbs.add_parser("key", help=text, description=text, epilog=_KEY_EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    key.add_argument("file", type=Path, metavar="FILE")
    key.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_two_sided(verbs: Any, name: str, left: tuple[str, str], right: tuple[str, str], output: str, example: str) -> None:  # noqa: ANN401
    text = {"diff": "make the difference between two packages", "patch": "make a package of another one and a difference"}[name]
    verb = verbs.add_parser(name, help=text, description=text, epilog=example, formatter_class=RawDescriptionHelpFormatter)
    for destination, metavar in (left, right):
        verb.add_argument(destination, type=Path, metavar=metavar)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar=output)
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_import(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    verb = verbs.add_parser(
        "import",
        help="make a package of an int8 .tflite file",
        description="Make a package of an int8 .tflite file, whoever exported it.",
        epilog=_IMPORT_EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    verb.add_argument("model", type=Path, metavar="MODEL.tflite")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="X.fmp")
    verb.add_argument("--board", default="posix", metavar="NAME", help="board that it is for (default: %(default)s)")
    verb.add_argument("--cut", metavar="NAME", help="tensor, or number of the node, where the encoder ends")
    verb.add_argument("--classes", type=int, metavar="N", help="a new head of zeros with N outputs behind the cut")
    verb.add_argument(
        "--head-layers", type=int, default=1, metavar="1|2", help="last dense layers that become the head (default: %(default)s)"
    )
    verb.add_argument("--model-id", metavar="ID", help="name of the model (default: the file's)")
    verb.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: Namespace) -> int:
    """Runs the verb that was asked for. Returns the exit code."""
    verbs = {
        "import": _run_import,
        "show": _run_show,
        "verify": _run_verify,
        "diff": _run_diff,
        "patch": _run_patch,
        "key": _run_key,
    }
    return verbs[options.package_verb](options)


def _run_key(options: Namespace) -> int:
    verify_key = SigningKey.make(options.file).verify_key.hex()
    if options.json:
        _print_json({"file": str(options.file), "verify_key": verify_key})
    else:
        sys.stdout.write(f"{options.file} holds the key (mode 0600); its verify key is {verify_key}\n")
    return 0


def _run_import(options: Namespace) -> int:
    board = Board.load(options.board)
    try:
        data = options.model.read_bytes()
    except OSError as error:
        raise ConfigError(f"{options.model}: {error.strerror or error}") from error
    model_id = options.model_id or re.sub(r"[^a-z0-9-]+", "-", options.model.stem.lower()).strip("-") or "model"
    package, parts = import_tflite(data, str(options.model), board, model_id, options.cut, options.classes, options.head_layers)
    write_result(options.output, package.to_bytes())
    for note in parts.notes:
        sys.stderr.write(f"{note}\n")
    if options.json:
        _print_json({"package": str(options.output), "notes": list(parts.notes), **describe(package)})
    else:
        _print_table(package)
    return 0


def _run_show(options: Namespace) -> int:
    package = Package.read(options.package)
    if options.json:
        _print_json({"package": str(options.package), **describe(package)})
    else:
        _print_table(package)
    return 0


def _run_verify(options: Namespace) -> int:
    package = Package.read(options.package)
    checks = [
        f"header, checksum and hash of {len(package.to_bytes())} bytes",
        f"{package.header.op_count} operators: codes, shapes, offsets, shifts, clamps",
        f"head {package.head_shape}",
        "manifest agrees with plan and head",
    ]
    if not package.is_device_form:
        checks.append("host manifest agrees; encoder.tflite compiles to this very plan and these weights")
    if options.json:
        _print_json({"package": str(options.package), "is_valid": True, "hash": package.hash.hex(), "checks": checks})
    else:
        for check in checks:
            _say(f"ok  {check}")
        _say(f"hash {package.hash.hex()}")
    return 0


def _run_diff(options: Namespace) -> int:
    old, new = Package.read(options.old).device_form(), Package.read(options.new).device_form()
    difference = make_difference(old, new)
    write_result(options.output, difference)
    _tell_sizes(options, "difference", old, new, difference)
    return 0


def _run_patch(options: Namespace) -> int:
    old = Package.read(options.old).device_form()
    try:
        difference = options.difference.read_bytes()
    except OSError as error:
        raise ConfigError(f"{options.difference}: {error.strerror or error}") from error
    try:
        new = Package.read(apply_difference(old, difference)).device_form()
    except PackageError as error:
        raise PackageError(f"{options.difference}: {error}", error.status) from error
    write_result(options.output, new)
    _tell_sizes(options, "package", old, new, difference)
    return 0


def _tell_sizes(options: Namespace, made: str, old: bytes, new: bytes, difference: bytes) -> None:
    ratio = len(difference) / len(new)
    if options.json:
        sizes = {"old_bytes": len(old), "new_bytes": len(new), "difference_bytes": len(difference), "ratio": ratio}
        hashes = {"old_hash": container.hash_of(old).hex(), "new_hash": container.hash_of(new).hex()}
        _print_json({made: str(options.output), **sizes, **hashes})
        return
    rows = [(name, f"{len(data):,}") for name, data in (("old device form", old), ("new device form", new))]
    _print_rows(("", "bytes"), [*rows, ("difference", f"{len(difference):,}")])
    _say(f"{ratio:.1%} of the new package; {options.output} is the {made}")


def describe(package: Package) -> dict[str, Any]:
    """Everything that `show` prints, as one JSON object."""
    header, manifest = package.header, package.manifest
    _, records = check_plan(package.sections[Section.PLAN], package.sections[Section.WEIGHTS])
    return {
        "model": manifest.get("model"),
        "version": manifest.get("version"),
        "board": manifest.get("board"),
        "cut": manifest.get("cut"),
        "hash": package.hash.hex(),
        "file_bytes": len(package.to_bytes()),
        "device_bytes": len(package.device_form()),
        "input": manifest["input"],
        "features": manifest["features"],
        "head": {"inputs": package.features, "hidden": package.head_shape.hidden, "outputs": package.outputs},
        "macs": header.macs,
        "encoder_bytes": header.encoder_bytes,
        "is_pushable": not package.is_device_form and package.host.template is not None,
        "sections": [
            {"type": kind, "name": _section_name(kind), "bytes": len(data)} for kind, data in sorted(package.sections.items())
        ],
        "operators": [_describe_record(record) for record in records],
        "boards": [
            {**vars(needs), "fits": needs.fits}
            for needs in (package.cost_on(Board.load(name)) for name in boards_with("fedmote-device"))
        ],
    }


def _section_name(kind: int) -> str:
    try:
        name = Section(kind).name.lower().replace("_", "-")
    except ValueError:
        name = "unknown"
    return f"{name} (host)" if kind >= container.HOST_SECTIONS else name


def _describe_record(record: Record) -> dict[str, Any]:
    values = record.values
    source, target = _shapes(record)
    return {
        "operator": record.opcode.name,
        "input": source,
        "output": target,
        "kernel": [values["kernel_h"], values["kernel_w"]] if "kernel_h" in values else None,
        "stride": [values["stride_h"], values["stride_w"]] if "stride_h" in values else None,
        "units": values["units"],
        "unit_macs": values["unit_macs"],
        "record_bytes": 4 * record_words(record.opcode),
        "constant_bytes": _constant_bytes(record),
        "input_offset": values["input_offset"],
        "output_offset": values["output_offset"],
    }


def _shapes(record: Record) -> tuple[list[int], list[int]]:
    v = record.values
    if "in_n" in v:
        return [v["in_n"]], [v["out_n"]]
    if record.opcode is Opcode.MEAN:
        return [v["in_h"], v["in_w"], v["channels"]], [v["channels"]]
    if "in_h" in v:
        source, target = ("in_c", "out_c") if "in_c" in v else ("channels", "channels")
        return [v["in_h"], v["in_w"], v[source]], [v["out_h"], v["out_w"], v[target]]
    if record.opcode is Opcode.STRIDED_COPY:
        own = [v[f"n{i}"] for i in range(4)]
    else:
        own = [v["rows"], v["n"]] if record.opcode is Opcode.SOFTMAX else [v["count"]]
    return own, own


def _constant_bytes(record: Record) -> int:
    """Weights and the numbers of each channel, tables, constant operands."""
    v = record.values
    if "scaling" in v:
        outputs = v["out_n"] if "in_n" in v else v["out_c"]
        products = v["in_n"] if "in_n" in v else v["kernel_h"] * v["kernel_w"] * v["group_in_c"]
        bits = 4 if record.opcode.name.endswith("_INT4") else 8
        return (products * outputs * bits + 7) // 8 + 12 * outputs
    match record.opcode:
        case Opcode.TABLE:
            return 256
        case Opcode.SOFTMAX:
            return 4 * 256
        case Opcode.ADD | Opcode.MUL:
            return v["count2"] if v["input2_is_constant"] else 0
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_json(content: dict[str, Any]) -> None:
    _say(json.dumps(content, sort_keys=True))


def _print_table(package: Package) -> None:
    d = describe(package)
    _say(f"model {d['model']}  version {d['version']}  board {d['board']}  cut {d['cut']}")
    _say(f"hash {d['hash']}")
    for side in ("input", "features"):
        tensor = d[side]
        shape = "x".join(str(length) for length in tensor["shape"])
        _say(f"{side:9}{shape:14} scale {tensor['scale']:.7g}, zero point {tensor['zero_point']}")
    _say(f"head     {package.head_shape}, float32")
    _say(f"encoder  {d['macs']:,} MACs, {d['encoder_bytes']:,} bytes of arena\n")
    _print_rows(("section", "bytes"), [(s["name"], f"{s['bytes']:,}") for s in d["sections"]])
    rows = [("device form", f"{d['device_bytes']:,}"), ("file", f"{d['file_bytes']:,}")]
    _print_rows(("", ""), rows)
    _print_rows(
        ("operator", "input", "output", "kernel", "stride", "MACs", "constants", "in at", "out at"),
        [
            (
                op["operator"],
                *("x".join(map(str, op[key] or [])) for key in ("input", "output", "kernel", "stride")),
                f"{op['units'] * op['unit_macs']:,}",
                *(f"{op[key]:,}" for key in ("constant_bytes", "input_offset", "output_offset")),
            )
            for op in d["operators"]
        ],
    )
    _print_rows(
        ("board", "fits", "slot", "of", "arena", "of", "cached samples"),
        [
            (
                b["board"],
                "yes" if b["fits"] else "no",
                *(f"{b[key]:,}" for key in ("slot_bytes", "slot_available", "arena_bytes", "arena_available", "cached_samples")),
            )
            for b in d["boards"]
        ],
    )


def _print_rows(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table: the first column to the left, the others to the right."""
    table = [heads, *rows] if any(heads) else rows
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        _say("  ".join(cells).rstrip())
    _say("")
