# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for one broker, and the broker's certificate: made offline by the `openssl` program.

`openssl` comes with `ca-certificates`, which nearly every machine has; a Python package for certificates would be one more
dependency that has to be fetched. Keys are elliptic (P-256) and readable for their owner alone. The authority's key signs nothing
but broker certificates: whoever has it can pass for the broker, so it may be kept elsewhere once the certificate is made.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedmote.errors import ConfigError
from fedmote.private_files import make_private_directory, refuse_shared

CA_DAYS = 7300
SERVER_DAYS = 825
RENEWAL_DAYS = 60
_TIMEOUT_S = 60.0
_SERIAL_BYTES = 16
_SECONDS_PER_DAY = 86_400

_CONFIGURATION = """\
[req]
distinguished_name = name
prompt = no
[name]
O = fedmote
CN = {common_name}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Certificates:
    """The files of a broker's TLS in one directory.

    Attributes:
        directory: of all of them.
    """

    directory: Path

    @property
    def ca(self) -> Path:
        """What hosts trust: `ca_file` of their [broker] tables."""
        return self.directory / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Of the authority."""
        return self.directory / "ca.key"

    @property
    def server(self) -> Path:
        """What the broker shows."""
        return self.directory / "server.crt"

    @property
    def server_key(self) -> Path:
        """Of the broker."""
        return self.directory / "server.key"

    def write(self, site: str, names: tuple[str, ...]) -> list[Path]:
        """Make what is missing: the authority once, the broker's certificate for these names, before it ends or names change.

        Returns:
            The files that are new.

        Raises:
            ConfigError: there is no openssl, it failed, or the authority's key is needed and not here.
        """
        make_private_directory(self.directory)
        new: list[Path] = []
        if not self.ca.exists():
            self._make_authority(site)
            new += [self.ca, self.ca_key]
        if self.ca in new or not self.serves(names) or not self.lasts(RENEWAL_DAYS):
            if not self.ca_key.exists():
                raise ConfigError(
                    f"{self.ca_key}: the key of the authority is needed to make a certificate; bring it back for that"
                )
            refuse_shared(self.ca_key)
            self._make_server(names)
            new += [self.server, self.server_key]
        return new

    def serves(self, names: tuple[str, ...]) -> bool:
        """Whether the broker's certificate is there and for all these names."""
        if not (self.server.exists() and self.server_key.exists()):
            return False
        known = _openssl("x509", "-in", self.server, "-noout", "-ext", "subjectAltName")
        found = {word.strip() for word in known.replace("\n", ",").split(",")}
        return {one.replace("IP:", "IP Address:") for one in map(_alternative, names)} <= found

    def lasts(self, days: int) -> bool:
        """Whether the broker's certificate is good for so many days more."""
        command = [_program(), "x509", "-in", str(self.server), "-noout", "-checkend", str(days * _SECONDS_PER_DAY)]
        return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0

    def _make_authority(self, site: str) -> None:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.directory) as folder:
            settings = _write(Path(folder) / "settings", f"fedmote authority of site {site}", "DNS:unused")
            made = Certificates(Path(folder))
            _openssl(
                *("req", "-x509", "-config", settings, "-extensions", "authority", "-days", CA_DAYS, "-sha256"),
                *(*_new_key(made.ca_key), "-out", made.ca),
            )
            made.ca_key.replace(self.ca_key)
            made.ca.replace(self.ca)

    def _make_server(self, names: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.directory) as folder:
            settings = _write(Path(folder) / "settings", names[0], ", ".join(map(_alternative, names)))
            request, made = Path(folder) / "request", Certificates(Path(folder))
            _openssl("req", "-new", "-config", settings, "-sha256", *_new_key(made.server_key), "-out", request)
            _openssl(
                *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.ca_key, "-days", SERVER_DAYS, "-sha256"),
                *("-set_serial", int.from_bytes(secrets.token_bytes(_SERIAL_BYTES), "big")),
                *("-extfile", settings, "-extensions", "server", "-out", made.server),
            )
            made.server_key.replace(self.server_key)
            made.server.replace(self.server)


def has_openssl() -> bool:
    """Whether certificates can be made on this machine."""
    return shutil.which("openssl") is not None


def _new_key(path: Path) -> list[object]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]


def _alternative(name: str) -> str:
    """A name as it stands in a certificate: numbers and dots are an address."""
    is_address = all(part.isdigit() for part in name.split("."))
    return f"IP:{name}" if is_address else f"DNS:{name}"


def _write(path: Path, common_name: str, names: str) -> Path:
    path.write_text(_CONFIGURATION.format(common_name=common_name[:64], names=names), encoding="utf-8")
    return path


def _program() -> str:
    found = shutil.which("openssl")
    if found is None:
        raise ConfigError("openssl, which makes the broker's certificates, is not installed; on Debian: apt install openssl")
    return found


def _openssl(*arguments: object) -> str:
    """Run openssl with files that its owner alone may read; ConfigError where it fails. Its arguments hold no secrets."""
    command = [_program(), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, umask=0o077)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"openssl {command[1]}: {error}") from error
    if done.returncode != 0:
        raise ConfigError(f"openssl {command[1]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
