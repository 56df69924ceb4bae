# SPDX-License-Identifier: Apache-2.0
"""What a partner keeps over restarts: one directory, each file written whole or not at all.

    checkpoint.safetensors     the newest checkpoint; its hash is computed on reading
    update.pending             an update without an ack, with its report
    samples/<device>.offer     selected samples of a device, until the update that used them is settled
    starts                     number of the last start: boot towards the coordinator, epoch towards the cell

Samples are personal data: the directory is the owner's alone (0700), the files too (0600).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fedmote.errors import ConfigError, RemoteWireError
from fedmote.partner.session import Offer, Pending, Standing, blob_hash
from fedmote.store.durable import remove_leftovers, write_durably
from fedmote.wire.blobs import decode_selected_samples
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import Kind

log = logging.getLogger(__name__)

_MAX_START = 2**32 - 1
_LENGTH_BYTES = 4
_RUN_BYTES = 8
_CHECKPOINT, _PENDING, _SAMPLES, _STARTS = "checkpoint.safetensors", "update.pending", "samples", "starts"


class PartnerState:
    """The directory of one partner.

    Raises:
        ConfigError: the directory cannot be made.
        StoreError: later, from every writing method: the disk is full, read-only or failing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            (directory / _SAMPLES).mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            for folder in (directory, directory / _SAMPLES):  # half a file of samples is personal data as well
                remove_leftovers(folder)
        except OSError as error:
            raise ConfigError(f"state_directory {directory}: {error.strerror}") from error

    def load(self) -> Standing:
        """What is there. A file that makes no sense is as if it were not there: everything can be had again."""
        offers = (self._load_offer(path) for path in sorted((self.directory / _SAMPLES).glob("*.offer")))
        return Standing(
            {offer.device: offer for offer in offers if offer is not None}, self._load_checkpoint(), self._load_pending()
        )

    def next_start(self, clock: Callable[[], float] = time.time) -> tuple[int, int]:
        """Number of this start, durable when it is returned, and of the one before (0: there was none).

        Numbers rise strictly and are at least the Unix time, so that a directory that was lost does not repeat one.

        Raises:
            ConfigError: the file that counts is damaged, or the numbers are used up.
        """
        path = self.directory / _STARTS
        try:
            former = int(path.read_text(encoding="ascii")) if path.exists() else 0
            number = max(former + 1, int(clock()))
            if not 0 <= former < number <= _MAX_START:
                raise ValueError(f"start {number} after {former}")
        except (OSError, ValueError) as error:
            words = f"{path}: {error}; expected the number of the last start, 1 to {_MAX_START}: is the clock right?"
            raise ConfigError(words) from error
        write_durably(path, f"{number}\n".encode())
        return number, former

    def keep_checkpoint(self, blob: bytes) -> None:
        """Replace the checkpoint."""
        write_durably(self.directory / _CHECKPOINT, blob)

    def keep_pending(self, pending: Pending) -> None:
        """Replace the pending update."""
        report = encode(pending.report)
        write_durably(self.directory / _PENDING, len(report).to_bytes(_LENGTH_BYTES, "little") + report + pending.blob)

    def drop_pending(self) -> None:
        """Forget the pending update."""
        (self.directory / _PENDING).unlink(missing_ok=True)

    def keep_offer(self, offer: Offer) -> None:
        """Replace a device's samples."""
        head = offer.run + offer.round.to_bytes(_LENGTH_BYTES, "little")
        write_durably(self.directory / _SAMPLES / f"{offer.device}.offer", head + offer.blob)

    def drop_offers(self, devices: tuple[str, ...]) -> None:
        """Delete samples."""
        for device in devices:
            (self.directory / _SAMPLES / f"{device}.offer").unlink(missing_ok=True)

    def _load_checkpoint(self) -> tuple[bytes, bytes] | None:
        path = self.directory / _CHECKPOINT
        if not path.exists():
            return None
        blob = path.read_bytes()
        return blob_hash(blob), blob

    def _load_pending(self) -> Pending | None:
        path = self.directory / _PENDING
        if not path.exists():
            return None
        content = path.read_bytes()
        start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        try:
            report: Message = decode(Kind.REPORT, content[_LENGTH_BYTES:start])
        except RemoteWireError as error:
            log.warning("ignored %s: %s", path, error)
            return None
        return Pending(report, content[start:])

    def _load_offer(self, path: Path) -> Offer | None:
        content = path.read_bytes()
        start = _RUN_BYTES + _LENGTH_BYTES
        try:
            decode_selected_samples(content[start:])
        except RemoteWireError as error:
            log.warning("removed %s: %s", path, error)
            path.unlink()
            return None
        return Offer(path.stem, content[:_RUN_BYTES], int.from_bytes(content[_RUN_BYTES:start], "little"), content[start:])
