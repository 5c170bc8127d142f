"""What a run's recommendations have cost, day by day, kept beside the run and added to by every command and server."""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from store.artifacts import atomic_write
from store.errors import CorruptArtifact
from store.lock import writer_lock

LEDGER, FILE = "ledger", "ledger.json"
"""The folder in a run, and the file in it."""
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
    """

    requests: int = 0
    reranked: int = 0
    candidates: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retrieval_ms: float = 0.0
    rerank_ms: float = 0.0

    @property
    def fed_tokens(self) -> int:
        """Tokens that really went through the model."""
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: "Spent") -> "Spent":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Spent)}
        return Spent(**sums)

    def cost(self, prices: Prices) -> float:
        """In the currency of the prices: tokens through the model, and the machine's time."""
        hours = (self.retrieval_ms + self.rerank_ms) / 3_600_000
        return self.fed_tokens / 1e6 * prices.per_million_tokens + hours * prices.per_machine_hour

    def cost_of_1000(self, prices: Prices) -> float:
        """Of a thousand requests like these; 0 without any."""
        return 1000 * self.cost(prices) / self.requests if self.requests else 0.0


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
            raise CorruptArtifact(f"{path} cannot be read ({error}): move it away to count anew") from error

    @property
    def today(self) -> Spent:
        """Of the present day."""
        return self.days.get(_today(), Spent())

    @property
    def total(self) -> Spent:
        """Of all days."""
        return sum(self.days.values(), Spent())


class Allowance:
    """Tokens that may go through the model on one day; safe for several threads.

    Args:
        per_day: None for as many as are asked for.
        spent: tokens of the present day so far.
    """

    def __init__(self, per_day: int | None, *, spent: int = 0) -> None:
        self.per_day = per_day
        self._day, self._spent = _today(), spent
        self._lock = threading.Lock()

    def remaining(self) -> int | None:
        """Of the present day, at least 0; None without a limit."""
        with self._lock:
            self._turn()
            return None if self.per_day is None else max(0, self.per_day - self._spent)

    def spend(self, tokens: int) -> None:
        """Puts tokens down to the present day."""
        with self._lock:
            self._turn()
            self._spent += tokens

    def settle(self, spent: int) -> None:
        """Takes over what all processes together have spent on the present day, by the ledger."""
        with self._lock:
            self._turn()
            self._spent = spent

    def _turn(self) -> None:
        if self._day != _today():
            self._day, self._spent = _today(), 0


def add_to_ledger(folder: Path, spent: Spent) -> Ledger:
    """Adds to the present day's sums, whatever other processes and threads add at the same time.

    Args:
        folder: the ledger's own, made if missing.
        spent: what is added.

    Raises:
        CorruptArtifact: as `Ledger.read`.
        RunBusy: when another process has been writing for ten seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file's lock keeps other processes out, not other threads of this one.
    with _THREADS, writer_lock(folder, wait_s=_LOCK_WAIT_S):
        before = Ledger.read(folder)
        after = Ledger({**before.days, _today(): before.today + spent})
        saved = {day: asdict(sums) for day, sums in after.days.items()}
        atomic_write(folder / FILE, json.dumps(saved, indent=1) + "\n")
    return after


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
