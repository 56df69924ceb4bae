# SPDX-License-Identifier: Apache-2.0
"""A whole fleet in one file, to keep it safe or to move it: registry with keys, accounts of the broker, the last epoch.

The file is not encrypted. It is as secret as the fleet: mode 0600, and for a place where nobody else reads. Cell keys and the
secrets of groups are not in it; they are in the credentials of devices and partners alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmote.errors import ConfigError
from fedmote.fleet.broker_files import Accounts, BrokerFiles
from fedmote.fleet.enrolment import BrokerState, Enrolment
from fedmote.fleet.registry import Registry
from fedmote.private_files import read_private, write_private

FORMAT = 2
_FORMATS = (1, 2)  # the first one has no groups


def export_fleet(path: Path, registry: Registry, site: str, files: BrokerFiles | None) -> None:
    """Write everything; an existing file is not replaced.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists; another name is expected, so that no backup is lost")
    accounts = Accounts() if files is None else Accounts.read(files)
    content = {"format": FORMAT, "site": site, **registry.dump(), "hashes": accounts.hashes, "psks": accounts.psks}
    write_private(path, json.dumps(content, indent=1) + "\n")


def import_fleet(path: Path, enrolment: Enrolment, site: str) -> BrokerState:
    """Read everything back into an empty registry, and into the broker's files where there are some.

    Raises:
        ConfigError: the file is none of ours, of another site, readable for others, or the registry is not empty.
    """
    content = _read(path)
    if content["site"] != site:
        raise ConfigError(f"{path}: a fleet of site {content['site']!r}, and this configuration is of {site!r}")
    enrolment.registry.restore(content, str(path))
    accounts = Accounts.read(enrolment.files)
    accounts.hashes |= content["hashes"]
    accounts.psks |= content["psks"]
    return enrolment.synchronise(accounts)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_private(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {type(error).__name__}") from error  # its text quotes none of the file
    expected = {"format": int, "site": str, "epoch": int, "participants": list, "hashes": dict, "psks": dict}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in expected.items()):
        raise ConfigError(f"{path}: not a fleet that `fedmote enroll export` wrote: the keys {', '.join(expected)} are expected")
    if content["format"] not in _FORMATS:
        raise ConfigError(f"{path}: format {content['format']}, this program knows {FORMAT}; upgrade fedmote")
    texts = [one for table in (content["hashes"], content["psks"]) for pair in table.items() for one in pair]
    if any(not isinstance(one, str) or "\n" in one for one in texts):
        raise ConfigError(f"{path}: hashes and psks: texts of one line are expected")
    return content
