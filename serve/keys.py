"""API keys of a run: shown once, kept as hashes, with scopes and an end."""

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from store.database import Database
from store.errors import BadInput, UnknownId

LIVE, FILE = "live", "keys.sqlite"
"""The folder in a run, and the file in it."""
PREFIX = "tandem"
FRESH_S = 1.0
"""How long a revoked key may still be taken for good."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    name TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    scopes TEXT NOT NULL,
    made INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER,
    note TEXT NOT NULL
) WITHOUT ROWID
"""
_NOTHING = "0" * 64


class Scope(StrEnum):
    """What a key opens."""

    READ = "read"
    """recommendations, searches, metrics"""
    WRITE = "write"
    """events, items, deletions"""


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key; times are Unix seconds.

    Attributes:
        name: its public part, by which it is listed and revoked.
        hash: SHA-256 of the whole, which is random enough to need no slow hash.
    """

    name: str
    hash: str
    scopes: frozenset[Scope]
    made: int
    expires: int | None
    revoked: int | None
    note: str

    def is_good(self, now: float) -> bool:
        """Whether it opens anything at that moment."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys:
    """The keys of a run, in `live/` of its folder; other processes' changes are seen within a second.

    Raises:
        CorruptArtifact, Mismatch, NoSpace: as `Database`.
    """

    def __init__(self, root: Path) -> None:
        self._database = Database(root / LIVE / FILE, _SCHEMA)
        self._known: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()

    def add(self, scopes: frozenset[Scope], *, days: float | None = None, note: str = "") -> str:
        """Makes a key and returns it whole, for the only time.

        Args:
            scopes: what it opens, at least one.
            days: until it expires; None: never.
            note: for people who read the list.

        Raises:
            BadInput: when there is no scope, or it would be expired at once.
        """
        if not scopes:
            raise BadInput("a key needs a scope: read, write or both")
        if days is not None and days <= 0:
            raise BadInput(f"a key that expires in {days:g} days opens nothing: give a positive number")
        name = secrets.token_hex(4)
        whole = f"{PREFIX}_{name}_{secrets.token_urlsafe(32)}"
        now = time.time()
        expires = None if days is None else int(now + days * 86_400)
        row = (name, _hash(whole), " ".join(sorted(scopes)), int(now), expires, None, note)
        with self._database.writing() as database:
            database.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._read_at = float("-inf")
        return whole

    def revoke(self, name: str) -> None:
        """Closes a key for ever.

        Raises:
            UnknownId: when there is none of that name.
        """
        with self._database.writing() as database:
            query = "UPDATE keys SET revoked = coalesce(revoked, ?) WHERE name = ?"
            if not database.execute(query, (int(time.time()), name)).rowcount:
                known = ", ".join(key.name for key in self.all()) or "none"
                raise UnknownId(f"there is no key {name!r}; those of this run: {known}")
        self._read_at = float("-inf")

    def all(self) -> list[Key]:
        """Every key that was ever made, the oldest first."""
        rows = self._database.reading("SELECT * FROM keys ORDER BY made, name")
        return [_key(row) for row in rows]

    def scopes_of(self, whole: str) -> frozenset[Scope]:
        """What a key opens; nothing where it is wrong, revoked or expired, and nobody can tell which."""
        self._look()
        name = whole.split("_")[1] if whole.count("_") > 1 else ""
        key = self._known.get(name)
        # Compared in any case, so that time does not tell whether there is a key of that name.
        same = hmac.compare_digest(_hash(whole), key.hash if key else _NOTHING)
        return key.scopes if key is not None and same and key.is_good(time.time()) else frozenset()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _look(self) -> None:
        if time.monotonic() - self._read_at < FRESH_S or not self._lock.acquire(blocking=False):
            return
        try:
            self._known = {key.name: key for key in self.all()}
            self._read_at = time.monotonic()
        finally:
            self._lock.release()


def _hash(whole: str) -> str:
    return hashlib.sha256(whole.encode()).hexdigest()


def _key(row: tuple[object, ...]) -> Key:
    name, hashed, scopes, made, expires, revoked, note = row
    return Key(
        name=str(name),
        hash=str(hashed),
        scopes=frozenset(map(Scope, str(scopes).split())),
        made=int(str(made)),
        expires=None if expires is None else int(str(expires)),
        revoked=None if revoked is None else int(str(revoked)),
        note=str(note),
    )
