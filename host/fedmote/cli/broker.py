# SPDX-License-Identifier: Apache-2.0
"""`fedmote broker`: the files of a Mosquitto for a fleet, whether they are sound, and the broker itself."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from fedmote.cli.table import say, shown, write_json
from fedmote.config.table import require_identifier
from fedmote.errors import ConfigError, TransportError
from fedmote.fleet.broker_check import Finding, examine
from fedmote.fleet.broker_files import MAX_CONNECTIONS, Binding, BrokerFiles, write_configuration
from fedmote.fleet.certificates import Certificates
from fedmote.fleet.enrolment import Enrolment
from fedmote.fleet.registry import Registry
from fedmote.private_files import make_private_directory
from fedmote.transport.broker import find_mosquitto

SUMMARY = "write Mosquitto's configuration for a fleet, check it, run it"
EXAMPLES = """examples:
  fedmote broker init broker --site barn --registry fleet                      plain text, on loopback alone
  fedmote broker init broker --site barn --registry fleet --bind 0.0.0.0 --name hub.local --name 192.168.1.10
                                                       TLS for hosts (8883), TLS with pre-shared keys for devices (8884)
  fedmote broker check broker                          exit 1 with everything that is wrong
  fedmote broker run broker                            in the foreground; refuses what `check` refuses

`init` may be repeated: accounts and the certificate authority are kept, the broker's certificate is made anew where names
changed or it is about to end.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verb's arguments."""
    style: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": RawDescriptionHelpFormatter}
    verbs = parser.add_subparsers(dest="what", required=True, metavar="init|check|run")
    init = verbs.add_parser("init", help="write configuration, accounts, access lists and certificates", **style)
    check = verbs.add_parser("check", help="say what is wrong with them", **style)
    running = verbs.add_parser("run", help="run the broker with them", **style)
    for verb in (init, check, running):
        verb.add_argument("directory", type=Path, metavar="DIR")
    init.add_argument("--site", required=True, metavar="NAME", help="of the fleet, as in coordinator.toml")
    init.add_argument("--registry", type=Path, required=True, metavar="DIR", help="of the fleet; made where there is none")
    init.add_argument(
        "--bind", metavar="ADDRESS", help="network address to serve with TLS, e.g. 0.0.0.0; default: loopback alone"
    )
    init.add_argument(
        "--name", action="append", default=[], metavar="NAME|IP", help="how others reach it, for URLs and certificate; repeat"
    )
    init.add_argument("--tcp-port", type=int, default=1883, metavar="N", help="plain text, loopback (default: 1883)")
    init.add_argument("--tls-port", type=int, default=8883, metavar="N", help="TLS for hosts (default: 8883)")
    init.add_argument("--psk-port", type=int, default=8884, metavar="N", help="TLS-PSK for devices (default: 8884)")
    init.add_argument("--max-connections", type=int, default=MAX_CONNECTIONS, metavar="N", help=f"default: {MAX_CONNECTIONS}")
    for verb in (init, running):
        verb.add_argument("--insecure", action="store_true", help="plain text beyond loopback, for networks that are trusted")
    for verb in (init, check):
        verb.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: Namespace) -> int:
    """Write, check, or become the broker."""
    directory: Path = options.directory.absolute()
    if options.what == "init":
        return _init(directory, options)
    findings = examine(BrokerFiles(directory, ""))
    if options.what == "check":
        return _check(directory, findings, options.json)
    return _run(directory, findings, options.insecure)


def _init(directory: Path, options: Namespace) -> int:
    binding = _binding(options)
    require_identifier("--site", options.site)
    files = BrokerFiles(directory.resolve(), options.site, binding.url)
    made: list[Path] = []
    with Registry.open(options.registry, is_made=True) as registry:
        make_private_directory(directory)
        if binding.has_tls:
            made = Certificates(files.tls).write(options.site, binding.names)
        enrolment = Enrolment(registry, options.site, directory)
        state = enrolment.synchronise()
        write_configuration(files, binding)
    if options.insecure:
        say(_insecure_words(f"{binding.address}:{binding.tcp_port}"))
    if state == "told":
        say("a broker runs with these files; listeners and certificates change when it is started anew")
    if options.json:
        write_json(
            {
                "directory": str(files.directory),
                "configuration": str(files.configuration),
                "url": binding.url,
                "ca_file": str(Certificates(files.tls).ca) if binding.has_tls else None,
                "made": [str(path) for path in made],
                "is_insecure": options.insecure,
            }
        )
        return 0
    sys.stdout.write(f"hosts      {binding.url}\n")
    if binding.has_tls:
        sys.stdout.write(f"ca_file    {shown(Certificates(files.tls).ca)}\n")
        sys.stdout.write(f"devices    {binding.names[0]}:{binding.psk_port}, TLS with the psk of their credentials\n")
    sys.stdout.write(f"start it   fedmote broker run {options.directory}\n")
    return 0


def _binding(options: Namespace) -> Binding:
    if options.bind is None and options.insecure:
        raise ConfigError("--insecure belongs to --bind: on loopback plain text is no secret lost")
    if options.bind is None and options.name:
        raise ConfigError("--name belongs to --bind ADDRESS: without it the broker serves loopback alone")
    names = tuple(options.name) or (("127.0.0.1",) if options.bind in (None, "0.0.0.0", "::") else (options.bind,))
    if options.bind is not None and options.bind in ("0.0.0.0", "::") and not options.name:
        raise ConfigError(f"--bind {options.bind} needs --name: the host name or address by which others reach the broker")
    return Binding(
        names,
        options.bind,
        options.tcp_port,
        options.tls_port,
        options.psk_port,
        options.insecure,
        max_connections=options.max_connections,
    )


def _check(directory: Path, findings: list[Finding], is_json: bool) -> int:
    if is_json:
        write_json({"directory": str(directory), "is_sound": not findings, "findings": [one.words for one in findings]})
    else:
        for one in findings:
            sys.stdout.write(f"{one.words}\n")
        sys.stdout.write(f"{directory}: {'a sound broker' if not findings else f'{len(findings)} to mend'}\n")
    return 1 if findings else 0


def _run(directory: Path, findings: list[Finding], is_insecure: bool) -> int:
    refused = [one for one in findings if not (is_insecure and one.is_plain_text)]
    if refused:
        hint = "; --insecure allows it where the network is trusted" if refused[0].is_plain_text else ""
        raise ConfigError(f"{refused[0].words}{hint}")
    program = find_mosquitto()
    if program is None:
        raise TransportError("mosquitto is not installed; on Debian: apt install mosquitto")
    for one in findings:
        say(f"INSECURE: {one.words}")
    sys.stderr.flush()
    os.execv(program, [str(program), "-c", str(directory / "mosquitto.conf")])


def _insecure_words(address: str) -> str:
    return f"INSECURE: plain text at {address}: whoever can listen on this network reads passwords and messages"
