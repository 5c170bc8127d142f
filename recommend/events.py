"""Live histories: what users took since the log ended, durable when acknowledged, and whom to forget."""

import hashlib
import hmac
import io
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import polars as pl

from data.schema import ITEM_ID, TIMESTAMP, USER_ID
from recommend.microbatch import MicroBatch
from store.atomic import atomic_write
from store.database import Database
from store.errors import TandemError

LIVE, FILE = "live", "events.sqlite"
"""The folder in a run, and the file in it."""
RECALLED = 1000
"""A user's latest events that are read as they came; towers and transitions look at fewer."""
BATCH = 64
"""Callers whose events share one transaction."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    time INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, time);
CREATE TABLE IF NOT EXISTS forgotten (user TEXT PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secret (value BLOB NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Event:
    """A user took an item at a moment (Unix seconds); `event_id` makes a second delivery harmless."""

    event_id: str
    user_id: str
    item_id: str
    time: int


@dataclass(frozen=True, slots=True)
class Stored:
    """How many events of a batch were new, and how many had been stored before under the same id."""

    accepted: int
    duplicates: int


class Taken(NamedTuple):
    """An event of a user who is known; numbers rise in the order in which events were stored."""

    item_id: str
    time: int
    number: int


class Events:
    """The events of a run, in `live/` of its folder; safe for several threads and processes.

    Raises:
        CorruptArtifact, Mismatch, NoSpace: as `Database`.
    """

    def __init__(self, root: Path) -> None:
        self._database = Database(root / LIVE / FILE, _SCHEMA)
        self._secret = self._kept_secret()
        # Each commit waits for the disk: who comes meanwhile shares the next one.
        self._writes: MicroBatch[Sequence[Event], Stored] = MicroBatch(self._store, most=BATCH)

    @classmethod
    def of(cls, root: Path) -> Self | None:
        """Those of the run at `root`; None where nothing was ever served from it, and no file is made."""
        return cls(root) if (root / LIVE / FILE).exists() else None

    def add(self, events: Sequence[Event]) -> Stored:
        """Stores all of them, or none; they are on disk when this returns.

        Raises:
            NoSpace: when the disk is full or refuses the write.
            RunBusy: when another process has been writing for ten seconds.
        """
        return self._writes(events)

    def of_user(self, user_id: str) -> list[Taken]:
        """The user's latest events, oldest first; before them, of each item that none of them has, the last event.

        So every item that the user took is there, and can be left out of what is recommended.
        """
        latest = self._taken(
            "SELECT item_id, time, number FROM events WHERE user_id = ? ORDER BY time DESC, number DESC LIMIT ?",
            user_id,
            RECALLED,
        )
        if len(latest) < RECALLED:
            return latest[::-1]
        among = {one.item_id for one in latest}
        # SQLite takes the number from the row that has the maximum.
        last = self._taken(
            "SELECT item_id, max(time), number FROM events WHERE user_id = ? GROUP BY item_id ORDER BY 2 DESC, 3 DESC",
            user_id,
        )
        return [*latest, *(one for one in last if one.item_id not in among)][::-1]

    def forgotten_at(self, user_id: str) -> int | None:
        """Unix seconds of the moment up to which the user is to be forgotten; None for everybody else."""
        rows = self._database.reading("SELECT time FROM forgotten WHERE user = ?", (self.hashed(user_id),))
        return int(str(rows[0][0])) if rows else None

    def forget(self, user_id: str) -> int:
        """Deletes the user's events, durably, and marks what the log has of them as not to be used any more.

        The mark holds a keyed hash, not the id.

        Returns:
            How many events were deleted.
        """
        with self._database.writing() as database:
            deleted = database.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            database.execute(
                "INSERT INTO forgotten VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET time = excluded.time",
                (self.hashed(user_id), int(time.time())),
            )
        self._database.fold()
        return deleted

    def forgotten(self, user_ids: pl.Series) -> pl.DataFrame:
        """user_id and time for those among `user_ids` who asked to be forgotten."""
        marks, found = self.marks(), {}
        if marks:
            hashes = {user_id: self.hashed(user_id) for user_id in user_ids.unique().to_list()}
            found = {user_id: marks[mark] for user_id, mark in hashes.items() if mark in marks}
        schema = {USER_ID: pl.String, TIMESTAMP: pl.Int64}
        return pl.DataFrame({USER_ID: list(found), TIMESTAMP: list(found.values())}, schema=schema)

    def frame(self, last: int | None = None) -> pl.DataFrame:
        """All events as a log: user_id, item_id, timestamp (Unix seconds), in the order in which they came.

        Args:
            last: number of the last one that is wanted; None: the newest.
        """
        rows = self._database.reading(
            "SELECT user_id, item_id, time FROM events WHERE number <= ? ORDER BY number",
            (self.last_number() if last is None else last,),
        )
        schema = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def last_number(self) -> int:
        """Of the newest event; 0 without one."""
        return int(str(self._database.reading("SELECT coalesce(max(number), 0) FROM events")[0][0]))

    def marks(self) -> dict[str, int]:
        """Keyed hash of each user who asked to be forgotten → Unix seconds of that."""
        rows = self._database.reading("SELECT user, time FROM forgotten ORDER BY user")
        return {str(user): int(str(moment)) for user, moment in rows}

    def export(self, path: Path) -> int:
        """Writes all events as a Parquet log and returns how many they are.

        Raises:
            NoSpace: when the disk is full or refuses the write.
        """
        frame, buffer = self.frame(), io.BytesIO()
        frame.write_parquet(buffer)
        atomic_write(path, buffer.getvalue())
        return len(frame)

    def hashed(self, user_id: str) -> str:
        """A keyed hash of a user's id, the same for this run at all times: for logs and marks."""
        return hmac.new(self._secret, user_id.encode(), hashlib.sha256).hexdigest()[:32]

    def trouble(self) -> str:
        """Why events cannot be read; empty where they can."""
        try:
            self.last_number()
        except (TandemError, OSError, sqlite3.Error) as error:
            return str(error)
        return ""

    def __len__(self) -> int:
        return int(str(self._database.reading("SELECT count(*) FROM events")[0][0]))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _taken(self, statement: str, *values: object) -> list[Taken]:
        rows = self._database.reading(statement, values)
        return [Taken(str(item_id), int(str(moment)), int(str(number))) for item_id, moment, number in rows]

    def _store(self, batches: Sequence[Sequence[Event]]) -> list[Stored]:
        stored = []
        with self._database.writing() as database:
            for events in batches:
                before = database.total_changes
                database.executemany(
                    "INSERT INTO events (event_id, user_id, item_id, time) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (event_id) DO NOTHING",
                    [(event.event_id, event.user_id, event.item_id, event.time) for event in events],
                )
                accepted = database.total_changes - before
                stored.append(Stored(accepted, len(events) - accepted))
        return stored

    def _kept_secret(self) -> bytes:
        with self._database.writing() as database:
            database.execute(
                "INSERT INTO secret SELECT ? WHERE NOT EXISTS (SELECT * FROM secret)", (secrets.token_bytes(32),)
            )
            return bytes(database.execute("SELECT value FROM secret").fetchone()[0])
