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

VERSION_2 = """
CREATE TABLE renewal (
    id TEXT PRIMARY KEY REFERENCES participant (id),
    state TEXT NOT NULL CHECK (state IN ('token', 'rotation', 'used')),  -- used: a token that the key has taken the place of
    other BLOB CHECK (other IS NULL OR length(other) = 32),              -- the next key, once it is made; or the used token
    boot INTEGER,                                                        -- of the board it was made for
    expires_at INTEGER,                                                  -- of a token: Unix time
    CHECK (state != 'used' OR other IS NOT NULL)
);
"""

VERSION_3 = """
CREATE TABLE mask_group (                       -- whose updates are summed under masks
    name TEXT PRIMARY KEY,
    id BLOB NOT NULL CHECK (length(id) = 8),    -- random
    num_neighbours INTEGER NOT NULL,
    threshold INTEGER NOT NULL,
    made_at TEXT NOT NULL                       -- UTC, for people
);
CREATE TABLE mask_member (
    name TEXT NOT NULL REFERENCES mask_group (name) ON DELETE CASCADE,
    number INTEGER NOT NULL,                    -- from 1, random
    participant TEXT NOT NULL REFERENCES participant (id),
    public BLOB NOT NULL CHECK (length(public) = 32),
    is_lost INTEGER NOT NULL,                   -- revoked since: it keeps its number, and never takes part again
    PRIMARY KEY (name, number),
    UNIQUE (name, participant)
);
"""

# Script of version n at index n - 1.
SCRIPTS = (VERSION_1, VERSION_2, VERSION_3)
