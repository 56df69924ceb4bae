# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a Mosquitto configuration and its files, before a broker starts with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmote.config.broker import is_loopback
from fedmote.errors import ConfigError
from fedmote.fleet.broker_files import BrokerFiles
from fedmote.fleet.certificates import Certificates
from fedmote.private_files import refuse_shared

# Options that name a file with secrets.
_SECRET_FILES = ("password_file", "psk_file", "keyfile")
_FILES = (*_SECRET_FILES, "acl_file", "certfile")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        words: what, where, what was expected.
        is_plain_text: it is plain text beyond loopback, which can be allowed by spelling it out.
    """

    words: str
    is_plain_text: bool = False


def examine(files: BrokerFiles) -> list[Finding]:
    """Everything that is wrong with a broker's configuration; nothing is changed.

    Raises:
        ConfigError: there is no configuration.
    """
    path = files.configuration
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; `fedmote broker init` writes it") from error
    options = [_split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [*_logins(path, options), *_listeners(path, options), *_files(path, options), *_certificate(files)]


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(" ")
    return name, value.strip()


def _logins(path: Path, options: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    given = [value for name, value in options if name == "allow_anonymous"]
    if not given or any(value != "false" for value in given):
        yield Finding(f"{path}: allow_anonymous {given[0] if given else 'is missing'}: false is expected")
    for needed in ("password_file", "acl_file"):
        if not any(name == needed for name, _ in options):
            yield Finding(f"{path}: {needed} is missing: everybody could {'log in' if needed == 'password_file' else 'read all'}")


def _listeners(path: Path, options: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """A listener takes the options behind it, up to the next one."""
    current: str | None = None
    options_of: dict[str, set[str]] = {}
    for name, value in options:
        if name == "listener":
            current = value
            options_of[current] = set()
        elif current is not None:
            options_of[current].add(name)
    if not options_of:
        yield Finding(f"{path}: listener is missing: a port and an address are expected")
    for value, names in options_of.items():
        address = value.partition(" ")[2]
        if not is_loopback(address) and not {"certfile", "psk_hint"} & names:
            words = f"{path}: listener {value}: plain text beyond loopback; TLS is expected: certfile and keyfile, or psk_hint"
            yield Finding(words, is_plain_text=True)


def _files(path: Path, options: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    for name, value in options:
        if name not in _FILES:
            continue
        if not Path(value).is_file():
            yield Finding(f"{path}: {name} {value}: there is no such file")
        elif name in _SECRET_FILES:
            try:
                refuse_shared(Path(value))
            except ConfigError as error:
                yield Finding(str(error))


def _certificate(files: BrokerFiles) -> Iterator[Finding]:
    certificates = Certificates(files.tls)
    if certificates.server.exists() and not certificates.lasts(0):
        yield Finding(f"{certificates.server}: has ended, by this machine's clock; `fedmote broker init` makes a new one")
