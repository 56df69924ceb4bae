# SPDX-License-Identifier: Apache-2.0
"""The ledger: an SQLite journal from which a run goes on after any interruption.

Write-ahead log with `synchronous = FULL`: when a method returns, its entry survives a power cut. Each method is one
transaction. Entries are added in the order of a round (opened, plans, updates, closed, committed or abandoned), and what
counts is added once: a second update of a participant breaks a primary key instead of being merged twice.

The result of a round is a pure function of what stands here: the base checkpoint and the updates named in table `update`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedmote.database import Database, database_errors, tables_version, upgrade
from fedmote.errors import StoreError
from fedmote.privacy.group import MaskedGroup
from fedmote.store.log import Log
from fedmote.store.schema import SCRIPTS
from fedmote.strategies import Member, RoundPlan
from fedmote.wire.masking import Ring
from fedmote.wire.schema import Phase, Role, Status

# The reasons of strangers are theirs to choose: a bound keeps them from filling the disk with new rows.
_MAX_REFUSAL_ROWS = 10_000
_VERSION_WITH_DEADLINE = 3
_VERSION_WITH_CONDUCT = 4
_VERSION_WITH_MASKS = 5


@dataclass(frozen=True)
class RunEntry:
    """What the run was begun with."""

    name: bytes
    seed: int
    strategy: str


@dataclass(frozen=True)
class CheckpointEntry:
    """A committed checkpoint."""

    version: int
    round: int
    hash: str
    encoder_version: int
    accuracy: float | None


@dataclass(frozen=True)
class RoundEntry:
    """A round as it stands.

    Attributes:
        plan: what it is.
        state: open, closed, committed or abandoned.
        version: of the checkpoint that it made.
        reason: of an abandoned one.
        seconds: that it took.
        missing: why, by participant, once it has ended.
        opened_at: UTC, for people; no decision depends on it.
        report_s: its deadline, seconds after it was opened or taken up again; None in ledgers of former versions.
    """

    plan: RoundPlan
    state: str
    version: int | None
    reason: str | None
    seconds: float | None
    missing: Mapping[str, str]
    opened_at: str = ""
    report_s: float | None = None


@dataclass(frozen=True)
class PlanEntry:
    """A participant was told to begin an attempt.

    Attributes:
        participant, attempt: who, and how often it has begun.
        boot: nonce of its boot.
        board, max_body: as its hello said; a restarted coordinator needs them before the next hello.
        base: hash of its installed package, which a difference may start from; None where packages come whole.
    """

    participant: str
    attempt: int
    boot: int
    board: str
    max_body: int
    base: bytes | None = None


@dataclass(frozen=True)
class UpdateEntry:
    """An update that counts."""

    participant: str
    role: Role
    attempt: int
    num_examples: int
    crc: int
    content: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class MaskBlobEntry:
    """Keys (step 1) or shares (step 3) of a member of a masked sum."""

    participant: str
    step: int
    attempt: int
    crc: int
    content: str


@dataclass(frozen=True)
class RefusalEntry:
    """A no, how often it was said, and by whom ("coordinator" or "participant")."""

    round: int
    participant: str
    side: str
    status: Status
    reason: str
    count: int


@dataclass(frozen=True)
class ConductEntry:
    """What a round says about an update; the columns of table `conduct`.

    Attributes:
        round, participant: which update.
        finding: "sound", "far" or "invalid".
        ratio: of its norm or distance to the round's median; None of an update that was never merged.
        is_filtered: left out of the merge, at least in part.
        streak: updates of the participant in a row that were not sound, this one included.
        reason: in words; empty where it is sound.
    """

    round: int
    participant: str
    finding: str
    ratio: float | None
    is_filtered: bool
    streak: int
    reason: str


@dataclass(frozen=True)
class QuarantineEntry:
    """A participant is left out of the rounds after `since`, up to and with `until`."""

    participant: str
    since: int
    until: int
    reason: str


@dataclass(frozen=True)
class PrivacyEntry:
    """What a privacy claim depends on; see table `privacy`."""

    noise_key: bytes = field(repr=False)
    num_devices: int
    num_cells: int
    devices_per_cell: int


class Ledger(Database):
    """The journal of one run. Use `Ledger.open`, and `close` or a `with` block.

    Attributes:
        path: the file.
        version: of its tables.
        damage: what was not whole at the end of the journal and does not count, in words; None where all is.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, damage: str | None = None) -> None:
        super().__init__(connection, path)
        self.damage = damage
        (self.version,) = connection.execute("PRAGMA user_version").fetchone()

    @classmethod
    def open(cls, path: Path, is_read_only: bool = False) -> Ledger:
        """Open a ledger, make it where there is none, upgrade an older one.

        Args:
            path: the file.
            is_read_only: only look; the file must be there.

        Raises:
            StoreError: the file is no ledger, is newer than this program, or cannot be written.
        """
        log = None if is_read_only else Log.read(path.with_name(f"{path.name}-wal"))
        with database_errors(path):
            connection = sqlite3.connect(f"file:{path}?mode={'ro' if is_read_only else 'rwc'}", uri=True, isolation_level=None)
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                if not is_read_only:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
                # SQLite recovers the log at the first look: what it found whole, it says here.
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                damage = None if log is None else log.damage(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
                if not is_read_only:
                    upgrade(connection, path, "ledger", SCRIPTS)
                elif tables_version(connection, path, "ledger", SCRIPTS) == 0:
                    raise StoreError(f"{path}: no ledger of fedmote")
                return cls(connection, path, damage)
            except BaseException:
                connection.close()
                raise

    # ---- writing: one transaction each ------------------------------------------------------------------------------

    def begin_run(self, run: RunEntry, checkpoint: CheckpointEntry) -> None:
        """Journal a new run and the checkpoint that it begins with."""
        with self._transaction():
            self._write("INSERT INTO run VALUES (1, ?, ?, ?, ?)", run.name, run.seed, run.strategy, datetime.now(UTC).isoformat())
            self._add_checkpoint(checkpoint)

    def open_round(self, plan: RoundPlan, report_s: float | None = None) -> None:
        """Journal that a round begins, who is expected, and for how long."""
        with self._transaction():
            self._write(
                "INSERT INTO round (round, phase, base_version, seed, state, opened_at, report_s) "
                "VALUES (?, ?, ?, ?, 'open', ?, ?)",
                plan.round,
                int(plan.phase),
                plan.version,
                plan.seed,
                datetime.now(UTC).isoformat(),
                report_s,
            )
            numbers = {} if plan.masked is None else plan.masked.numbers
            for member in plan.members:
                self._write(
                    "INSERT INTO member (round, participant, role, cell, mask_number) VALUES (?, ?, ?, ?, ?)",
                    *(plan.round, member.id, int(member.role), member.cell, numbers.get(member.id)),
                )
            if plan.masked is not None:
                group, ring = plan.masked, plan.masked.ring
                shape = (ring.num_members, ring.num_neighbours, ring.threshold)
                self._write(
                    "INSERT INTO masking VALUES (?, ?, ?, ?, ?, ?, ?)", plan.round, group.name, group.id, *shape, group.clip_norm
                )
            self._write("INSERT INTO draw VALUES (?, ?)", plan.round, plan.num_candidates)

    def add_plan(self, number: int, plan: PlanEntry) -> None:
        """Journal that a participant begins an attempt; keys that it handed in before count no longer."""
        with self._transaction():
            self._write(
                "DELETE FROM mask_blob WHERE round = ? AND participant = ? AND step = 1 AND NOT EXISTS "
                "(SELECT 1 FROM mask_step WHERE round = ? AND step = 1)",
                *(number, plan.participant, number),
            )
            self._write(
                "INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?)",
                number,
                plan.participant,
                plan.attempt,
                plan.boot,
                plan.board,
                plan.max_body,
                plan.base,
            )

    def add_update(self, number: int, update: UpdateEntry) -> None:
        """Journal an update of an open round; from here on it counts.

        Raises:
            StoreError: an update of this participant counts already, or the round is not open.
        """
        with self._transaction():
            if self._one("SELECT state FROM round WHERE round = ?", number) != ("open",):
                raise StoreError(f"{self.path}: update of {update.participant} for round {number}, which is not open")
            if self._one("SELECT 1 FROM mask_step WHERE (round, step) = (?, 2)", number) is not None:
                raise StoreError(f"{self.path}: update of {update.participant} for round {number}, whose updates are fixed")
            self._write(
                'INSERT INTO "update" VALUES (?, ?, ?, ?, ?, ?, ?)',
                number,
                update.participant,
                update.attempt,
                update.num_examples,
                update.crc,
                update.content,
                json.dumps(dict(sorted(update.numbers.items()))),
            )

    def add_mask_blob(self, number: int, blob: MaskBlobEntry) -> None:
        """Journal keys or shares of a masked member of an open round; from here on they count.

        Raises:
            StoreError: some of this member count already, the step is over, or the round is not open.
        """
        with self._transaction():
            is_over = self._one("SELECT 1 FROM mask_step WHERE (round, step) = (?, ?)", number, blob.step) is not None
            if self._one("SELECT state FROM round WHERE round = ?", number) != ("open",) or is_over:
                raise StoreError(
                    f"{self.path}: step {blob.step} of {blob.participant} for round {number}, which is over or not open"
                )
            self._write(
                "INSERT INTO mask_blob VALUES (?, ?, ?, ?, ?, ?)",
                *(number, blob.participant, blob.step, blob.attempt, blob.crc, blob.content),
            )

    def end_mask_step(self, number: int, step: int) -> None:
        """Journal that a step is over: whose keys came (1), or whose masked updates did (2), is fixed."""
        with self._transaction():
            self._write("INSERT INTO mask_step VALUES (?, ?)", number, step)

    def add_refusal(self, number: int, participant: str, side: str, status: Status, reason: str, count: int = 1) -> None:
        """Count a no, that was said `count` times."""
        with self._transaction():
            known = "SELECT 1 FROM refusal WHERE (round, participant, side, status, reason) = (?, ?, ?, ?, ?)"
            (rows,) = self._one("SELECT count(*) FROM refusal") or (0,)
            if rows >= _MAX_REFUSAL_ROWS and self._one(known, number, participant, side, int(status), reason) is None:
                number, participant, reason = 0, "others", "others"
            self._write(
                "INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (round, participant, side, status, reason) DO UPDATE SET count = count + excluded.count",
                number,
                participant,
                side,
                int(status),
                reason,
                count,
            )

    def close_round(self, number: int, missing: Mapping[str, str]) -> None:
        """Journal that the set of updates is fixed; only the merge is missing now."""
        with self._transaction():
            self._write("UPDATE round SET state = 'closed' WHERE round = ? AND state = 'open'", number)
            self._note_missing(number, missing)

    def commit_round(
        self,
        number: int,
        checkpoint: CheckpointEntry,
        seconds: float,
        conduct: Iterable[ConductEntry] = (),
        quarantines: Iterable[QuarantineEntry] = (),
    ) -> None:
        """Journal the merge of a closed round as a checkpoint, whose file is written already, and what it says of its updates."""
        with self._transaction():
            self._add_checkpoint(checkpoint)
            self._add_conduct(conduct, quarantines)
            self._write(
                "UPDATE round SET state = 'committed', version = ?, seconds = ? WHERE round = ? AND state = 'closed'",
                checkpoint.version,
                seconds,
                number,
            )

    def add_conduct(self, conduct: Iterable[ConductEntry], quarantines: Iterable[QuarantineEntry] = ()) -> None:
        """Journal what is said about updates, and who is left out for it."""
        with self._transaction():
            self._add_conduct(conduct, quarantines)

    def begin_privacy(self, entry: PrivacyEntry) -> None:
        """Journal the noise key of the run, once."""
        with self._transaction():
            self._write(
                "INSERT INTO privacy VALUES (1, ?, ?, ?, ?)",
                entry.noise_key,
                entry.num_devices,
                entry.num_cells,
                entry.devices_per_cell,
            )

    def abandon_round(self, number: int, reason: str, seconds: float, missing: Mapping[str, str]) -> None:
        """Journal that a round ends without a merge."""
        with self._transaction():
            self._write("UPDATE round SET state = 'abandoned', reason = ?, seconds = ? WHERE round = ?", reason, seconds, number)
            self._note_missing(number, missing)

    def _add_checkpoint(self, entry: CheckpointEntry) -> None:
        self._write(
            "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?)",
            entry.version,
            entry.round,
            entry.hash,
            entry.encoder_version,
            entry.accuracy,
        )

    def _add_conduct(self, conduct: Iterable[ConductEntry], quarantines: Iterable[QuarantineEntry]) -> None:
        for one in conduct:
            self._write(
                "INSERT INTO conduct VALUES (?, ?, ?, ?, ?, ?, ?)",
                one.round,
                one.participant,
                one.finding,
                one.ratio,
                one.is_filtered,
                one.streak,
                one.reason,
            )
        for out in quarantines:
            self._write("INSERT INTO quarantine VALUES (?, ?, ?, ?)", out.participant, out.since, out.until, out.reason)

    def _note_missing(self, number: int, missing: Mapping[str, str]) -> None:
        for participant, reason in missing.items():
            self._write("UPDATE member SET missing = ? WHERE round = ? AND participant = ?", reason, number, participant)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def run(self) -> RunEntry | None:
        """What the run was begun with; None in a new ledger."""
        row = self._one("SELECT name, seed, strategy FROM run")
        return None if row is None else RunEntry(*row)

    def checkpoints(self) -> list[CheckpointEntry]:
        """All committed checkpoints, ascending."""
        rows = self._all("SELECT version, round, hash, encoder_version, accuracy FROM checkpoint ORDER BY version")
        return [CheckpointEntry(*row) for row in rows]

    def rounds(self, number: int | None = None) -> list[RoundEntry]:
        """All rounds in order, or the one of this number."""
        where, arguments = ("", ()) if number is None else ("WHERE round = ?", (number,))
        members: dict[int, list[Member]] = {}
        missing: dict[int, dict[str, str]] = {}
        numbers: dict[int, dict[str, int]] = {}
        # A ledger that is only looked at keeps its version: columns may not be there.
        mask_number = "mask_number" if self.version >= _VERSION_WITH_MASKS else "NULL"
        for row in self._all(
            f"SELECT round, participant, role, cell, missing, {mask_number} FROM member {where} ORDER BY round, participant",
            *arguments,
        ):
            members.setdefault(row[0], []).append(Member(row[1], Role(row[2]), row[3]))
            if row[4] is not None:
                missing.setdefault(row[0], {})[row[1]] = row[4]
            if row[5] is not None:
                numbers.setdefault(row[0], {})[row[1]] = row[5]
        masked = self._masked(numbers)
        report_s = "report_s" if self.version >= _VERSION_WITH_DEADLINE else "NULL"
        has_draws = self.version >= _VERSION_WITH_CONDUCT
        drawn, join = ("coalesce(num_candidates, 0)", "LEFT JOIN draw USING (round)") if has_draws else ("0", "")
        rows = self._all(
            f"SELECT round, phase, base_version, seed, state, version, reason, seconds, opened_at, {report_s}, {drawn} "
            f"FROM round {join} {where} ORDER BY round",
            *arguments,
        )
        return [
            RoundEntry(
                RoundPlan(row[0], Phase(row[1]), row[2], row[3], tuple(members.get(row[0], ())), row[10], masked.get(row[0])),
                row[4],
                row[5],
                row[6],
                row[7],
                missing.get(row[0], {}),
                row[8],
                row[9],
            )
            for row in rows
        ]

    def _masked(self, numbers: Mapping[int, Mapping[str, int]]) -> dict[int, MaskedGroup]:
        """The groups of masked rounds, with the numbers of their members, by round."""
        if not numbers:
            return {}
        rows = self._all("SELECT round, name, id, num_members, num_neighbours, threshold, clip_norm FROM masking")
        return {
            row[0]: MaskedGroup(row[1], bytes(row[2]), Ring(row[3], row[4], row[5]), row[6], numbers[row[0]])
            for row in rows
            if row[0] in numbers
        }

    def mask_blobs(self, number: int, step: int) -> list[MaskBlobEntry]:
        """Keys (step 1) or shares (step 3) of a round, in ascending order of participants."""
        if self.version < _VERSION_WITH_MASKS:
            return []
        rows = self._all(
            "SELECT participant, step, attempt, crc, content FROM mask_blob WHERE (round, step) = (?, ?) ORDER BY participant",
            *(number, step),
        )
        return [MaskBlobEntry(*row) for row in rows]

    def ended_mask_steps(self, number: int) -> frozenset[int]:
        """Steps of a masked round that are over."""
        if self.version < _VERSION_WITH_MASKS:
            return frozenset()
        return frozenset(row[0] for row in self._all("SELECT step FROM mask_step WHERE round = ?", number))

    def updates(self, number: int) -> list[UpdateEntry]:
        """The updates of a round that count, in ascending order of participants."""
        rows = self._all(
            'SELECT u.participant, m.role, u.attempt, u.num_examples, u.crc, u.content, u.numbers FROM "update" u '
            "JOIN member m ON m.round = u.round AND m.participant = u.participant WHERE u.round = ? ORDER BY u.participant",
            number,
        )
        return [UpdateEntry(row[0], Role(row[1]), row[2], row[3], row[4], row[5], json.loads(row[6])) for row in rows]

    def last_updates(self) -> dict[str, tuple[int, int]]:
        """(round, CRC) of the newest update that counts, by participant."""
        rows = self._all('SELECT participant, max(round), crc FROM "update" GROUP BY participant')
        return {row[0]: (row[1], row[2]) for row in rows}

    def plans(self, number: int) -> dict[str, PlanEntry]:
        """The newest plan of a round, by participant."""
        rows = self._all(
            "SELECT participant, max(attempt), boot, board, max_body, base FROM plan WHERE round = ? GROUP BY participant", number
        )
        return {row[0]: PlanEntry(*row) for row in rows}

    def conduct(self, number: int) -> list[ConductEntry]:
        """What is said about the updates of a round, in ascending order of participants."""
        if self.version < _VERSION_WITH_CONDUCT:
            return []
        rows = self._all(
            "SELECT round, participant, finding, ratio, is_filtered, streak, reason FROM conduct WHERE round = ? "
            "ORDER BY participant",
            number,
        )
        return [ConductEntry(row[0], row[1], row[2], row[3], bool(row[4]), row[5], row[6]) for row in rows]

    def streaks(self) -> dict[str, int]:
        """Updates in a row that were not sound, by participant."""
        rows = self._all("SELECT participant, max(round), streak FROM conduct GROUP BY participant")
        return {row[0]: row[2] for row in rows}

    def quarantines(self) -> list[QuarantineEntry]:
        """Who was or is left out, in order of rounds and participants."""
        if self.version < _VERSION_WITH_CONDUCT:
            return []
        rows = self._all("SELECT participant, since, until, reason FROM quarantine ORDER BY since, participant")
        return [QuarantineEntry(*row) for row in rows]

    def privacy(self) -> PrivacyEntry | None:
        """What the run's privacy claim depends on; None in a run without noise."""
        if self.version < _VERSION_WITH_CONDUCT:
            return None
        row = self._one("SELECT noise_key, num_devices, num_cells, devices_per_cell FROM privacy")
        return None if row is None else PrivacyEntry(*row)

    def refusals(self, number: int | None = None) -> list[RefusalEntry]:
        """Every no, or those of one round."""
        where, arguments = ("", ()) if number is None else ("WHERE round = ?", (number,))
        rows = self._all(
            f"SELECT round, participant, side, status, reason, count FROM refusal {where} "
            "ORDER BY round, participant, side, status, reason",
            *arguments,
        )
        return [RefusalEntry(row[0], row[1], row[2], Status(row[3]), row[4], row[5]) for row in rows]
