"""What a busy reranker may still be asked: fewer candidates before the answers get slower, then none."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from rerank.budget import LEAST_DEPTH

ROOM_SHARE = 0.5
"""Of the time that is left of the target, what one request may take: the next ones find some, too."""
MEMORY = 0.2
"""Weight of the last call in the running mean of the pace."""


class OverloadConfig(BaseModel):
    """How a service gives way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rerank_target_ms: float = Field(
        400.0, gt=0, description="waiting and reading together; more requests at once are given fewer candidates each"
    )
    batch: int = Field(8, ge=1, description="requests that the model reads in one call")
    batch_window_ms: float = Field(
        2.0, ge=0, description="how long a call is held back for others that are under way to join it"
    )


@dataclass(slots=True)
class Reading:
    """How many candidates of a request may be read, of those wanted, and whether they were."""

    wanted: int
    depth: int
    succeeded: bool = False

    @property
    def words(self) -> str:
        """What load has cost the answer; empty where nothing."""
        if self.depth == self.wanted:
            return ""
        if not self.depth:
            return "overload: not reranked"
        return f"overload: {self.depth} of {self.wanted} candidates reranked"


class RerankLoad:
    """Keeps the reranker's queue as short as a target of time says; safe for several threads.

    The pace is measured as the time from question to answer over all candidates that were to be read by then, so
    that what other processes ask of the same model shows in it, too.
    """

    def __init__(self, config: OverloadConfig) -> None:
        self.target_ms = config.rerank_target_ms
        self.waiting = 0
        """Candidates of requests that are waiting or being read."""
        self.ms_per_candidate = 0.0
        """A running mean; 0 before the first answer."""
        self._guessed = False
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, wanted: int) -> Iterator[Reading]:
        """Inside the block as many candidates as are granted are being read: all of `wanted` where nobody waits.

        The block says whether it succeeded. A failed reading says nothing about the pace, unless it took longer than
        all together may: then the model reads at most as fast as that.
        """
        with self._lock:
            depth = self._granted(wanted)
            self.waiting += depth
            ahead = self.waiting
        started, reading = time.perf_counter(), Reading(wanted, depth)
        try:
            yield reading
        finally:
            took_ms = (time.perf_counter() - started) * 1000
            if depth and (reading.succeeded or took_ms > self.target_ms):
                self._observe(took_ms / ahead, at_least=not reading.succeeded)
            with self._lock:
                self.waiting -= depth

    def _granted(self, wanted: int) -> int:
        if not self.waiting or not self.ms_per_candidate:
            return wanted
        room_ms = self.target_ms - self.waiting * self.ms_per_candidate
        depth = int(ROOM_SHARE * room_ms / self.ms_per_candidate)
        if depth >= wanted:
            return wanted
        return depth if depth >= LEAST_DEPTH else 0

    def _observe(self, ms: float, *, at_least: bool) -> None:
        with self._lock:
            before = self.ms_per_candidate
            if at_least and ms <= before:
                return
            # What a failure let suspect, such as a hang, is forgotten with the first answer.
            known = before and (at_least or not self._guessed)
            self.ms_per_candidate = before + MEMORY * (ms - before) if known else ms
            self._guessed = at_least
