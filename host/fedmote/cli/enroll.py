# SPDX-License-Identifier: Apache-2.0
"""`fedmote enroll`: who belongs to a fleet; keys, passwords and access lists follow."""

from __future__ import annotations

import asyncio
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmote.cli.table import say, shown, write_json, write_table
from fedmote.config import CoordinatorConfig, Credentials, load
from fedmote.errors import ConfigError
from fedmote.fleet.backup import export_fleet, import_fleet
from fedmote.fleet.broker_files import BrokerFiles
from fedmote.fleet.enrolment import Done, Enrolment
from fedmote.fleet.registry import Entry, Registry
from fedmote.package.boards import Board
from fedmote.package.signature import SigningKey
from fedmote.private_files import refuse_shared, write_private
from fedmote.transport.provisioning import ANSWER_S, provision
from fedmote.wire.regions import credentials_region, read_identity_region
from fedmote.wire.schema import Role

SUMMARY = "let devices and partners into a fleet, give them new keys, put them out"
EXAMPLES = """examples:
  fedmote enroll add device-2 --role device --cell desk           its credentials file, account and access list
  fedmote enroll add device-3 --role device --cell desk --identity-image device-3.bin --board stm32f405 --link mqtt
                                                                  and the identity region that is flashed into a board
  fedmote enroll token device-4 --role device --cell desk --expires 24h --identity-image device-4.bin
                                                                  an image for a technician: its key is good for one board,
                                                                  which gets a lasting one from the coordinator
  fedmote enroll serial device-2 --port /dev/ttyACM0 --link mqtt  its identity into a board that has none, over the serial line
  fedmote enroll serial device-4 --port /dev/ttyACM0 --image device-4.bin
                                                                  the same for whoever has the image alone
  fedmote enroll list --json                                      who belongs to the fleet; no keys
  fedmote enroll rotate device-2                                  new keys; the old ones are refused at once
  fedmote enroll rotate device-2 --over-the-air                   another key by the coordinator, nothing is flashed
  fedmote enroll group street device-1 device-2 device-3 device-4 device-5 device-6 device-7 device-8
                                                                  the coordinator learns the sum of their updates alone
  fedmote enroll revoke device-2                                  puts it out; a running coordinator and broker follow
  fedmote enroll export fleet.json                                a backup, with keys: as secret as the fleet

Files with secrets have mode 0600. They are named on stdout, never shown. Hand them over, then remove them here.
"""

_GROUP_TEXT = """A group is eight devices or more whose updates are summed under masks: where coordinator.toml says
[strategy.secure_sum] group = "NAME", the coordinator learns their sum and no single one. Members take part in such rounds alone.
Each gets a secret, its number and the public keys of its neighbours, in its credentials file and nowhere else, and new keys as by
`rotate`; so its identity is flashed anew. The registry holds public keys alone: whoever reads it can take no mask off.

examples:
  fedmote enroll group street device-1 device-2 device-3 device-4 device-5 device-6 device-7 device-8 --identity-images images
                                                                  credentials files, and images/device-1.bin and so on to flash
  fedmote enroll group street device-1 ... device-9 --again       with others, or after secrets were lost: all secrets are new
  fedmote enroll group street device-1 ... device-9 --threshold 6 of 8 neighbours 6 must answer: more must work together to open
                                                                  an update, and fewer may be lost

A member that is revoked keeps its number and is lost in every round: the others can go on while eight are left.
"""

_COLUMNS = ("id", "role", "cell", "state", "key version", "key", "added", "changed")
_DURATION = re.compile(r"([1-9]\d{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ROLES = {role.name.lower(): role for role in Role}


@dataclass(frozen=True)
class _Fleet:
    """What the configuration says about the fleet."""

    site: str
    registry: Path
    broker: Path | None
    verify_key: bytes | None


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verb's arguments."""
    style: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": RawDescriptionHelpFormatter}
    verbs = parser.add_subparsers(dest="what", required=True, metavar="add|token|serial|list|rotate|group|revoke|export|import")
    words = {
        "add": "let a participant in",
        "token": "let a device in with a one-time token, in whose place the coordinator gives it a lasting key",
        "serial": "write a device's identity into a board that has none, over its serial line",
        "list": "who belongs to the fleet",
        "rotate": "new keys and a new password; the old ones are refused at once",
        "group": "sum the updates of these devices under masks",
        "revoke": "put a participant out",
        "export": "write registry and accounts into a file, not encrypted, mode 0600",
        "import": "read that file into an empty registry",
    }
    styles = {"group": style | {"epilog": _GROUP_TEXT}}
    made = {name: verbs.add_parser(name, help=text, **styles.get(name, style)) for name, text in words.items()}
    for name in ("add", "token", "serial", "rotate", "revoke"):
        made[name].add_argument("id", metavar="ID")
    for name in ("export", "import"):
        made[name].add_argument("file", type=Path, metavar="FILE.json")
    for name in ("add", "token"):
        made[name].add_argument("--role", required=True, choices=sorted(_ROLES))
        made[name].add_argument("--cell", required=True, metavar="NAME")
        made[name].add_argument("--again", action="store_true", help="admit one that was revoked, with new keys")
    made["token"].add_argument(
        "--expires", type=_duration, default=86400, metavar="TIME", help="of the token: 30m, 24h, 7d (default: 24h)"
    )
    made["rotate"].add_argument(
        "--over-the-air", action="store_true", help="another key by the coordinator; password, PSK and cell key stay"
    )
    group = made["group"]
    group.add_argument("name", metavar="NAME")
    group.add_argument("ids", nargs="+", metavar="ID", help="a device; eight at least")
    group.add_argument(
        "--threshold", type=int, metavar="T", help="so many of a member's neighbours must answer (default: more than half)"
    )
    group.add_argument("--again", action="store_true", help="take the place of a group of this name, with new secrets")
    group.add_argument(
        "--identity-images", type=Path, metavar="DIR", help="also write DIR/ID.bin, the identity regions that are flashed"
    )
    for name in ("add", "token", "rotate"):
        made[name].add_argument(
            "--identity-image", type=Path, metavar="FILE", help="also write the identity region that is flashed into a board"
        )
    for name in ("add", "token", "rotate", "group"):
        made[name].add_argument("--board", metavar="BOARD", help="of the image: checks its size, says its address")
        made[name].add_argument("--link", choices=("mqtt", "serial"), default="mqtt", help="of the image (default: mqtt)")
        made[name].add_argument(
            "--send-samples", action="store_true", help="of the image: selected samples may go to the partner"
        )
    _add_serial(made["serial"])
    for verb in made.values():
        verb.add_argument(
            "--config", type=Path, default=Path("coordinator.toml"), metavar="coordinator.toml", help="default: here"
        )
        verb.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_serial(verb: ArgumentParser) -> None:
    verb.add_argument("--port", required=True, metavar="PORT", help="serial port or pty, or tcp://HOST:PORT where it is served")
    verb.add_argument("--baud", type=int, default=115200, help="bit/s (default: 115200)")
    verb.add_argument("--image", type=Path, metavar="FILE", help="the identity region; without it that of the credentials here")
    verb.add_argument("--board", metavar="BOARD", help="refuses every other one")
    verb.add_argument("--link", choices=("mqtt", "serial"), default="mqtt", help="without --image (default: mqtt)")
    verb.add_argument("--send-samples", action="store_true", help="without --image: selected samples may go to the partner")
    verb.add_argument(
        "--patience", type=float, default=ANSWER_S, metavar="SECONDS", help=f"for each word of the board (default: {ANSWER_S:g})"
    )


def run(options: Namespace) -> int:
    """Change the fleet, or say who is in it."""
    if options.what == "serial":
        return _provision(options)
    fleet = _fleet(options.config)
    with Registry.open(fleet.registry, is_made=options.what in ("add", "token", "import")) as registry:
        enrolment = Enrolment(registry, fleet.site, fleet.broker, verify_key=fleet.verify_key)
        if options.what == "list":
            _list(registry, options.json)
        elif options.what == "export":
            export_fleet(options.file, registry, fleet.site, enrolment.files if fleet.broker else None)
            _print_file(options.file, options.json)
        elif options.what == "import":
            import_fleet(options.file, enrolment, fleet.site)
            _list(registry, options.json)
        elif options.what == "group":
            _group(enrolment, options, fleet.verify_key is not None)
        else:
            _change(enrolment, options, fleet.verify_key is not None)
    return 0


def _fleet(path: Path) -> _Fleet:
    config = load(CoordinatorConfig, path, (), os.environ)
    if config.security.registry is None:
        raise ConfigError(f"{path}: security.registry is missing: the directory of the fleet's registry is expected there")
    signing = config.security.signing_key
    verify_key = None if signing is None else SigningKey.read(signing).verify_key
    return _Fleet(config.run.site, config.security.registry, config.security.broker_files, verify_key)


def _change(enrolment: Enrolment, options: Namespace, is_signing: bool) -> None:
    if options.what == "token" and options.role != "device":
        raise ConfigError(
            f"--role {options.role}: tokens are for devices, whose keys are flashed; `fedmote enroll add {options.id} "
            "--role partner` writes the file with a partner's key"
        )
    if options.what == "rotate" and options.over_the_air and options.identity_image is not None:
        raise ConfigError("--over-the-air: nothing is flashed, so --identity-image has no use with it")
    board = _board(options, is_signing)
    if options.what == "add":
        done = enrolment.add(options.id, _ROLES[options.role], options.cell, is_again=options.again)
    elif options.what == "token":
        done = enrolment.add_with_token(options.id, options.cell, options.expires, is_again=options.again)
    elif options.what == "rotate" and options.over_the_air:
        done = enrolment.rotate_over_the_air(options.id)
    elif options.what == "rotate":
        done = enrolment.rotate(options.id)
    else:
        done = enrolment.revoke(options.id)
    files = list(done.files)
    if options.what != "revoke" and options.identity_image is not None:
        credentials = load(Credentials, enrolment.files.credentials_file(options.id))
        write_private(options.identity_image, credentials_region(credentials, options.link, options.send_samples))
        files.append(options.identity_image)
    _print(enrolment.registry, done, files, board, options.json)


def _provision(options: Namespace) -> int:
    region = _region_of(options)
    if (found := read_identity_region(region).id) != options.id:
        raise ConfigError(f"{options.image}: the identity of {found}, and that of {options.id} was asked for")
    expected = None if options.board is None else Board.load(options.board)
    if expected is not None and not expected.is_provisioned:
        raise ConfigError(
            f"--board {expected.name}: it takes no identity over its line; --identity-image makes one to be flashed"
        )
    name = None if expected is None else expected.name
    board = asyncio.run(provision(options.port, options.baud, region, name, options.patience))
    if options.json:
        write_json({"id": options.id, "board": board, "port": options.port, "bytes": len(region)})
    else:
        say(f"{options.id}: a {board} at {options.port} has its identity, {len(region)} bytes, and starts with it")
    return 0


def _region_of(options: Namespace) -> bytes:
    """The region in the image, or of the device's credentials in this fleet."""
    if options.image is not None:
        refuse_shared(options.image)
        try:
            return bytes(options.image.read_bytes())
        except OSError as error:
            raise ConfigError(f"{options.image}: {error.strerror}") from error
    fleet = _fleet(options.config)
    path = BrokerFiles((fleet.broker or fleet.registry).resolve(), fleet.site).credentials_file(options.id)
    if not path.exists():
        raise ConfigError(f"{path}: there are no credentials of {options.id} here; --image takes a file of --identity-image")
    return credentials_region(load(Credentials, path), options.link, options.send_samples)


def _duration(text: str) -> int:
    """Seconds of "90s", "30m", "24h" or "7d"."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r}: a number and s, m, h or d are expected, such as 24h")
    return int(found[1]) * _SECONDS[found[2]]


def _group(enrolment: Enrolment, options: Namespace, is_signing: bool) -> None:
    directory: Path | None = options.identity_images
    if directory is None and options.board is not None:
        raise ConfigError("--board belongs to --identity-images")
    board = None if options.board is None else _with_identity(options.board, is_signing)
    if directory is not None and not directory.is_dir():
        raise ConfigError(f"--identity-images {directory}: there is no such directory")
    made = enrolment.group(options.name, options.ids, options.threshold, is_again=options.again)
    files = [file for done in made for file in done.files]
    for done in made if directory is not None else ():
        assert directory is not None  # see above
        credentials = load(Credentials, enrolment.files.credentials_file(done.entry.id))
        files.append(directory / f"{done.entry.id}.bin")
        write_private(files[-1], credentials_region(credentials, options.link, options.send_samples))
    group = enrolment.registry.group(options.name)
    address = None if board is None or not board.regions else board.region("identity").address
    notes = list(dict.fromkeys(note for done in made for note in done.notes))
    if options.json:
        write_json(
            {
                **group.to_json(),
                "files": [str(path) for path in dict.fromkeys(files)],
                "broker": made[0].broker,
                "identity_address": address,
                "notes": notes,
            }
        )
    else:
        _list_entries(enrolment.registry, [done.entry for done in made])
        for path in dict.fromkeys(files):
            say(f"secrets: {shown(path)} (mode 0600; hand it over, then remove it here)")
        if address is not None:
            say(f"flash the identity regions at 0x{address:08X}")
    for note in notes:
        say(note)
    ring = group.ring
    say(
        f"group {group.name}: {ring.num_members} members, each with {ring.num_neighbours} neighbours of whom {ring.threshold} "
        f'must answer; coordinator.toml asks for it by [strategy.secure_sum] group = "{group.name}"'
    )


def _with_identity(name: str, is_signing: bool) -> Board:
    """A board that an identity region can be flashed into, and whose devices can do what it says."""
    board = Board.load(name)
    if is_signing and not board.is_checking_signatures:
        raise ConfigError(
            f"--board {board.name}: it cannot check signatures, and security.signing_key asks its devices to; "
            "enrol it in a fleet without that key"
        )
    if board.regions:
        board.region("identity")  # refuses a board that has none
    return board


def _board(options: Namespace, is_signing: bool) -> Board | None:
    """The board of an image; ConfigError, before anything is changed, where an image cannot be made."""
    if options.what == "revoke" or (options.identity_image is None and options.board is None):
        return None
    if options.identity_image is None:
        raise ConfigError("--board belongs to --identity-image")
    if options.what == "add" and options.role != "device":
        raise ConfigError("--identity-image: partners have no identity region")
    if not options.identity_image.absolute().parent.is_dir():
        raise ConfigError(f"--identity-image {options.identity_image}: there is no such directory")
    return None if options.board is None else _with_identity(options.board, is_signing)


def _list(registry: Registry, is_json: bool) -> None:
    entries = registry.entries()
    if is_json:
        groups = [group.to_json() for group in registry.groups()]
        write_json({"participants": [_described(entry) for entry in entries], "groups": groups})
        return
    _list_entries(registry, entries)


def _list_entries(registry: Registry, entries: Sequence[Entry]) -> None:
    places = {who: (group.name, number) for group in registry.groups() for who, number in group.numbers.items()}
    columns, empty = ((*_COLUMNS, "group", "number"), (None, None)) if places else (_COLUMNS, ())
    write_table(columns, [(*_described(entry).values(), *places.get(entry.id, empty)) for entry in entries])


def _described(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"role": entry.role.name.lower()}


def _print_file(path: Path, is_json: bool) -> None:
    say(f"{path} holds every key of the fleet and is not encrypted; mode 0600: keep it where nobody else reads")
    if is_json:
        write_json({"file": str(path)})


def _print(registry: Registry, done: Done, files: list[Path], board: Board | None, is_json: bool) -> None:
    address = None if board is None or not board.regions else board.region("identity").address
    if is_json:
        write_json(
            {
                **_described(done.entry),
                "files": [str(path) for path in files],
                "broker": done.broker,
                "identity_address": address,
                "notes": list(done.notes),
            }
        )
        _say_notes(done)
        return
    _list_entries(registry, [done.entry])
    for path in files:
        say(f"secrets: {shown(path)} (mode 0600; hand it over, then remove it here)")
    if address is not None:
        say(f"flash the identity region at 0x{address:08X}")
    if done.broker == "told":
        say("the broker was told; it refuses what is no longer valid now")
    _say_notes(done)


def _say_notes(done: Done) -> None:
    for note in done.notes:
        say(note)
