"""A small SQLite database of a run: written durably, read by several processes and threads at once."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import CorruptArtifact, Mismatch, NoSpace, RunBusy

BUSY_S = 10.0
"""How long one writer waits for another."""


class Database:
    """One file in WAL mode with full synchronisation: what was committed survives a kill and a loss of power.

    Readers see what was committed before they began and never wait. Each thread has a connection of its own.

    Args:
        path: of the file, made if missing.
        schema: statements that make the tables where they are not there yet.
        version: of the schema, written into a new file.

    Raises:
        CorruptArtifact: when the file is no database.
        Mismatch: when another version of this program wrote it.
        NoSpace: when the disk is full or refuses the write.
    """

    def __init__(self, path: Path, schema: str, *, version: int = 1) -> None:
        self.path = path
        self._threads = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._opening = threading.Lock()
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            (found,) = self.connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, version):
                raise Mismatch(
                    f"{path} is of version {found}, this program writes version {version}: use the newer one"
                )
            self.connection.executescript(f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version = {version}; COMMIT;")

    @property
    def connection(self) -> sqlite3.Connection:
        """That of this thread."""
        found: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if found is None:
            # Threads end in their own time; all connections are closed together, by one of them.
            found = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA secure_delete = ON")
            self._threads.connection = found
            with self._opening:
                self._opened.append(found)
        return found

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block ends well, and without any trace when it does not.

        Raises:
            RunBusy: when another process has been writing for ten seconds.
            NoSpace, CorruptArtifact: as when it was opened.
        """
        with self._told():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def reading(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """The rows of one query.

        Raises:
            CorruptArtifact: when the file is damaged.
        """
        with self._told():
            return self.connection.execute(statement, values).fetchall()

    def fold(self) -> None:
        """Takes the journal into the file and empties it, so that nothing deleted is left in either."""
        with self._told():
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._opening:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        self._threads = threading.local()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            words = str(error)
            if "locked" in words or "busy" in words:
                raise RunBusy(f"{self.path} has been written by another process for {BUSY_S:g} s: try again") from error
            raise NoSpace(f"cannot write {self.path}: {words}. What was there before is untouched") from error
        except sqlite3.DatabaseError as error:
            raise CorruptArtifact(f"{self.path} cannot be read ({error}): move it away and start again") from error
