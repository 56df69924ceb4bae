# SPDX-License-Identifier: Apache-2.0
"""The ledger's tables. A new version adds a script that upgrades the one before; old scripts are never edited."""

from __future__ import annotations

# Tables are STRICT where SQLite has it; the check of types is Python's otherwise.
VERSION_1 = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),      -- one run per ledger
    name BLOB NOT NULL,                         -- 8 random bytes, the `run` of the protocol
    seed INTEGER NOT NULL,
    strategy TEXT NOT NULL,                     -- what the run was begun with, as JSON
    started_at TEXT NOT NULL                    -- UTC, for people; no decision depends on it
);
CREATE TABLE checkpoint (
    version INTEGER PRIMARY KEY,
    round INTEGER NOT NULL,                     -- that made it; 0 for the first
    hash TEXT NOT NULL,                         -- BLAKE2b-256 of the file
    encoder_version INTEGER NOT NULL,           -- oldest with this encoder; packages are built from it
    accuracy REAL                               -- of the deployed form; null where there is no test set
);
CREATE TABLE round (
    round INTEGER PRIMARY KEY,
    phase INTEGER NOT NULL,
    base_version INTEGER NOT NULL REFERENCES checkpoint (version),
    seed INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'committed', 'abandoned')),
    version INTEGER REFERENCES checkpoint (version),
    reason TEXT,                                -- of an abandoned round
    seconds REAL,
    opened_at TEXT NOT NULL                     -- UTC, for people
);
CREATE TABLE member (                           -- who was expected
    round INTEGER NOT NULL REFERENCES round (round),
    participant TEXT NOT NULL,
    role INTEGER NOT NULL,
    cell TEXT NOT NULL,
    missing TEXT,                               -- why no update of it counts, once the round has ended
    PRIMARY KEY (round, participant)
);
CREATE TABLE plan (                             -- who was told to begin, and how often
    round INTEGER NOT NULL,
    participant TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    board TEXT NOT NULL,
    max_body INTEGER NOT NULL,                  -- largest body that the participant takes
    PRIMARY KEY (round, participant, attempt),
    FOREIGN KEY (round, participant) REFERENCES member (round, participant)
);
CREATE TABLE "update" (                         -- what counts: at most one per participant and round
    round INTEGER NOT NULL,
    participant TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    num_examples INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    content TEXT NOT NULL,                      -- BLAKE2b-256, name of the blob
    numbers TEXT NOT NULL,                      -- what else the report said, as JSON
    PRIMARY KEY (round, participant),
    FOREIGN KEY (round, participant) REFERENCES member (round, participant)
);
CREATE TABLE refusal (                          -- every no, by reason
    round INTEGER NOT NULL,                     -- 0 outside of rounds
    participant TEXT NOT NULL,
    side TEXT NOT NULL CHECK (side IN ('coordinator', 'participant')),
    status INTEGER NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (round, participant, side, status, reason)
);
"""

VERSION_2 = """
ALTER TABLE plan ADD COLUMN base BLOB;          -- hash of the installed package, of a device that makes packages from differences
"""

VERSION_3 = """
ALTER TABLE round ADD COLUMN report_s REAL;     -- its deadline, seconds after it was opened or taken up again
"""

VERSION_4 = """
CREATE TABLE conduct (                          -- what a round says about an update
    round INTEGER NOT NULL,
    participant TEXT NOT NULL,
    finding TEXT NOT NULL CHECK (finding IN ('sound', 'far', 'invalid')),
    ratio REAL,                                 -- of norm or distance to the round's median; null of what was never read
    is_filtered INTEGER NOT NULL,               -- left out of the merge, at least in part
    streak INTEGER NOT NULL,                    -- updates in a row that were not sound, this one included
    reason TEXT NOT NULL,
    PRIMARY KEY (round, participant),
    FOREIGN KEY (round, participant) REFERENCES member (round, participant)
);
CREATE TABLE quarantine (
    participant TEXT NOT NULL,
    since INTEGER NOT NULL,                     -- round whose update was one too many
    until INTEGER NOT NULL,                     -- last round that the participant is left out of
    reason TEXT NOT NULL,
    PRIMARY KEY (participant, since)
);
CREATE TABLE privacy (                          -- what a privacy claim depends on, of a run with noise
    id INTEGER PRIMARY KEY CHECK (id = 1),
    noise_key BLOB NOT NULL,                    -- secret: whoever has it can take the noise off the model
    num_devices INTEGER NOT NULL,
    num_cells INTEGER NOT NULL,
    devices_per_cell INTEGER NOT NULL           -- the most that a cell has
);
CREATE TABLE draw (
    round INTEGER PRIMARY KEY REFERENCES round (round),
    num_candidates INTEGER NOT NULL             -- cells that were there to be drawn
);
"""

VERSION_5 = """
UPDATE run SET strategy = replace(strategy, '"server_learning_rate"', '"secure_sum": null, "server_learning_rate"');
ALTER TABLE member ADD COLUMN mask_number INTEGER;  -- in the round's group; null of whoever counts by itself
CREATE TABLE masking (                          -- the group of a round whose updates are summed under masks
    round INTEGER PRIMARY KEY REFERENCES round (round),
    name TEXT NOT NULL,                         -- for people
    id BLOB NOT NULL,                           -- 8 random bytes
    num_members INTEGER NOT NULL,
    num_neighbours INTEGER NOT NULL,
    threshold INTEGER NOT NULL,
    clip_norm REAL NOT NULL
);
CREATE TABLE mask_blob (                        -- keys and shares that count
    round INTEGER NOT NULL,
    participant TEXT NOT NULL,
    step INTEGER NOT NULL CHECK (step IN (1, 3)),
    attempt INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    content TEXT NOT NULL,                      -- BLAKE2b-256, name of the blob
    PRIMARY KEY (round, participant, step),
    FOREIGN KEY (round, participant) REFERENCES member (round, participant)
);
CREATE TABLE mask_step (                        -- a step that is over: whose keys, or masked updates, came is fixed
    round INTEGER NOT NULL REFERENCES masking (round),
    step INTEGER NOT NULL CHECK (step IN (1, 2)),
    PRIMARY KEY (round, step)
);
"""

# Script of version n at index n - 1.
SCRIPTS = (VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5)
