# SPDX-License-Identifier: Apache-2.0
"""The registry's tables. A new version adds a script that upgrades the one before; old scripts are never edited."""

from __future__ import annotations

VERSION_1 = """
CREATE TABLE participant (
    id TEXT PRIMARY KEY,
    role INTEGER NOT NULL,                      -- `role-*` of the wire schema
    cell TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'revoked')),
    key BLOB CHECK ((key IS NULL) = (state = 'revoked') AND (key IS NULL OR length(key) = 32)),
    key_version INTEGER NOT NULL,
    added_at TEXT NOT NULL,                     -- UTC, for people
    changed_at TEXT NOT NULL
);
CREATE TABLE epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    value INTEGER NOT NULL                      -- the last one that was given
);
"""

# Script of version n at index n - 1.
SCRIPTS = (VERSION_1,)
