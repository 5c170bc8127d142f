"""A reranker whose calls from several threads are put together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from recommend.microbatch import MicroBatch
from rerank.base import Reranker, RerankRequest, RerankResult

PLANNED = 0.8
"""Of the time limit, what reading is planned to take: a forecast may miss, and a child over the limit is ended."""


@dataclass(frozen=True, slots=True)
class _Call:
    """Requests of one caller, and when they came by `time.perf_counter`."""

    requests: Sequence[RerankRequest]
    came: float

    @property
    def timed(self) -> bool:
        """Whether any of them has a cap of time."""
        return any(request.max_ms is not None for request in self.requests)

    def now(self) -> list[RerankRequest]:
        """The same with the time that is left of their caps."""
        waited_ms = (time.perf_counter() - self.came) * 1000
        return [request.later(waited_ms) for request in self.requests]


class BatchedReranker:
    """Meets `Reranker`; what several callers ask at about the same time is read in one call of `inside`.

    Requests with a cap of time share no call with others, who would wait for each other: they divide the time of their
    call among themselves, what they have waited for it is deducted, and none may take more than its share of the time
    limit.

    Args:
        inside: the reranker.
        most: callers whose requests share one call.
        window_ms: how long a call is held back for others that are under way.
        expected: how many callers may be under way.
        timeout_s: longest wait for the turn, and longest time of one call of `inside`.
    """

    def __init__(
        self, inside: Reranker, *, most: int, window_ms: float, expected: Callable[[], int], timeout_s: float
    ) -> None:
        self.inside = inside
        self.name = inside.name
        self.timeout_s = timeout_s
        self._calls: MicroBatch[_Call, RerankResult] = MicroBatch(
            self._score_all, most=most, window_ms=window_ms, expected=expected, kind=lambda call: call.timed
        )

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`.

        Raises:
            Crowded: when others were served for too long.
            Exception: what `inside` raised.
        """
        return self._calls(_Call(requests, time.perf_counter()), timeout_s=self.timeout_s)

    def calibrate(self) -> None:
        """See `Reranker`."""
        self.inside.calibrate()

    def _score_all(self, calls: Sequence[_Call]) -> list[RerankResult]:
        asked = [request for call in calls for request in call.now()]
        share_ms = PLANNED * 1000 * self.timeout_s / max(1, len(asked))
        found = self.inside.score(
            [one if one.max_ms is None else replace(one, max_ms=min(one.max_ms, share_ms)) for one in asked]
        )
        if len(calls) == 1:
            return [found]
        ends = accumulate((len(call.requests) for call in calls), initial=0)
        return [
            RerankResult(
                found.scores[start:end],
                found.prompt_tokens[start:end],
                found.cached_tokens[start:end],
                found.cut_candidates[start:end],
                found.cuts[start:end],
            )
            for start, end in pairwise(ends)
        ]
