# SPDX-License-Identifier: Apache-2.0
"""What survives: the ledger (SQLite), numbered checkpoints (safetensors), updates by content."""

from fedmote.store.blobs import Blobs, content_name
from fedmote.store.checkpoints import Checkpoint, Checkpoints, parse_ranges
from fedmote.store.ledger import (
    CheckpointEntry,
    ConductEntry,
    Ledger,
    MaskBlobEntry,
    PlanEntry,
    PrivacyEntry,
    QuarantineEntry,
    RefusalEntry,
    RoundEntry,
    RunEntry,
    UpdateEntry,
)
from fedmote.store.state import LEDGER, State, set_aside

__all__ = [
    "LEDGER",
    "Blobs",
    "Checkpoint",
    "CheckpointEntry",
    "Checkpoints",
    "ConductEntry",
    "Ledger",
    "MaskBlobEntry",
    "PlanEntry",
    "PrivacyEntry",
    "QuarantineEntry",
    "RefusalEntry",
    "RoundEntry",
    "RunEntry",
    "State",
    "UpdateEntry",
    "content_name",
    "parse_ranges",
    "set_aside",
]
