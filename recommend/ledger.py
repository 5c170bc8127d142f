"""What a run's recommendations and trainings have cost, day by day, beside the run; every command and server adds."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from store.artifacts import atomic_write
from store.errors import CorruptArtifact
from store.lock import writer_lock

LEDGER, FILE, GRANTED = "ledger", "ledger.json", "granted.json"
"""The folder in a run, the file in it, and another with the tokens of the day that were granted."""
_LOCK_WAIT_S = 10.0
_THREADS = threading.Lock()


class Prices(BaseModel):
    """What tokens and machines cost, in any currency; a model on one's own machine costs the machine alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_million_tokens: float = Field(0.0, ge=0, description="price of a million tokens through the model")
    per_machine_hour: float = Field(0.0, ge=0, description="price of an hour of the machine")


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums over requests.

    Attributes:
        requests: answered, with or without the reranker.
        reranked: of these, the ones for which it read anything.
        candidates: items that it read.
        prompt_tokens: of what it read, those that it remembered included.
        cached_tokens: those that it remembered.
        retrieval_ms: of the first stage.
        rerank_ms: of the second.
        tied: of those reranked, the ones whose scores were all alike, so that retrieval order stayed.
        trainings: of either stage, for whichever fit.
        training_tokens: of lists that rerankers learnt from; what an encoder reads of a catalog is not counted.
        training_minutes: of both stages.
    """

    requests: int = 0
    reranked: int = 0
    candidates: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retrieval_ms: float = 0.0
    rerank_ms: float = 0.0
    tied: int = 0
    trainings: int = 0
    training_tokens: int = 0
    training_minutes: float = 0.0

    @property
    def fed_tokens(self) -> int:
        """Tokens of requests that really went through the model."""
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: "Spent") -> "Spent":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Spent)}
        return Spent(**sums)

    def cost(self, prices: Prices) -> float:
        """Of the requests, in the currency of the prices: tokens through the model, and the machine's time."""
        hours = (self.retrieval_ms + self.rerank_ms) / 3_600_000
        return self.fed_tokens / 1e6 * prices.per_million_tokens + hours * prices.per_machine_hour

    def cost_of_1000(self, prices: Prices) -> float:
        """Of a thousand requests like these; 0 without any."""
        return 1000 * self.cost(prices) / self.requests if self.requests else 0.0

    def training_cost(self, prices: Prices) -> float:
        """Of the trainings, by the same prices."""
        hours = self.training_minutes / 60
        return self.training_tokens / 1e6 * prices.per_million_tokens + hours * prices.per_machine_hour


@dataclass(frozen=True)
class Ledger:
    """Sums by day (UTC), as a file says."""

    days: Mapping[str, Spent]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What the file in `folder` holds; nothing where there is none.

        Raises:
            CorruptArtifact: when it cannot be read.
        """
        path = folder / FILE
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return cls({day: Spent(**sums) for day, sums in saved.items()})
        except FileNotFoundError:
            return cls({})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _unreadable(path, error) from error

    @property
    def today(self) -> Spent:
        """Of the present day."""
        return self.days.get(_today(), Spent())

    @property
    def total(self) -> Spent:
        """Of all days."""
        return sum(self.days.values(), Spent())


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens that a call may use, and the day that they belong to."""

    tokens: int
    day: str


class Allowance:
    """Tokens that may go through the model on one day; safe for several threads and, with a folder, processes.

    Tokens are reserved before a call and settled after it, so that calls under way at the same time cannot exceed the
    day's limit together. What a killed process had reserved stays taken.

    Args:
        per_day: None for as many as are asked for.
        folder: the ledger's own, where all processes count together; None: this object counts for itself.

    Raises:
        CorruptArtifact: when the ledger cannot be read: told at once, not after the work.
    """

    def __init__(self, per_day: int | None, *, folder: Path | None = None) -> None:
        if folder is not None:
            Ledger.read(folder)
        self.per_day = per_day
        self._folder = folder
        self._day, self._granted = _today(), 0
        self._lock = threading.Lock()

    def reserve(self, tokens: int) -> Grant | None:
        """As many of these tokens as the present day has left; None without a limit.

        Raises:
            CorruptArtifact: when the ledger cannot be read.
            RunBusy: when another process has been writing to it for ten seconds.
        """
        if self.per_day is None:
            return None
        with self._alone():
            taken = self._taken()
            granted = max(0, min(tokens, self.per_day - taken))
            if granted:
                self._take(taken + granted)
            return Grant(granted, self._day)

    def settle(self, grant: Grant | None, used: int) -> None:
        """Puts what was used in the place of what was reserved for it."""
        if grant is None or used == grant.tokens:
            return
        with self._alone():
            taken = self._taken()
            if grant.day == self._day:
                self._take(max(0, taken - grant.tokens + used))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            if self._folder is None:
                yield
                return
            with _writing(self._folder):
                yield

    def _taken(self) -> int:
        """Of the present day. What was fed without asking here, as by another program, stands in the ledger."""
        if self._day != _today():
            self._day, self._granted = _today(), 0
        if self._folder is None:
            return self._granted
        path = self._folder / GRANTED
        try:
            granted = int(json.loads(path.read_text(encoding="utf-8")).get(self._day, 0)) if path.exists() else 0
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _unreadable(path, error) from error
        return max(granted, Ledger.read(self._folder).today.fed_tokens)

    def _take(self, tokens: int) -> None:
        self._granted = tokens
        if self._folder is not None:
            atomic_write(self._folder / GRANTED, json.dumps({self._day: tokens}) + "\n")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Alone among threads and processes."""
    folder.mkdir(parents=True, exist_ok=True)
    # The file's lock keeps other processes out, not other threads of this one.
    with _THREADS, writer_lock(folder, wait_s=_LOCK_WAIT_S):
        yield


def add_to_ledger(folder: Path, spent: Spent) -> Ledger:
    """Adds to the present day's sums, whatever other processes and threads add at the same time.

    Args:
        folder: the ledger's own, made if missing.
        spent: what is added.

    Raises:
        CorruptArtifact: as `Ledger.read`.
        RunBusy: when another process has been writing for ten seconds.
    """
    with _writing(folder):
        before = Ledger.read(folder)
        after = Ledger({**before.days, _today(): before.today + spent})
        saved = {day: asdict(sums) for day, sums in after.days.items()}
        atomic_write(folder / FILE, json.dumps(saved, indent=1) + "\n")
    return after


def _unreadable(path: Path, error: Exception) -> CorruptArtifact:
    return CorruptArtifact(f"{path} cannot be read ({error}): move it away to count anew")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
