"""A reranker whose calls from several threads are put together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from recommend.microbatch import MicroBatch
from rerank.base import Reranker, RerankRequest, RerankResult

PLANNED = 0.8
"""Of the time limit, what reading is planned to take: a forecast may miss, and a child over the limit is ended."""


class BatchedReranker:
    """Meets `Reranker`; what several callers ask at about the same time is read in one call of `inside`.

    Requests with a `max_ms` are read within their share of one call's time limit.

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
        self._calls: MicroBatch[Sequence[RerankRequest], RerankResult] = MicroBatch(
            self._score_all, most=most, window_ms=window_ms, expected=expected
        )

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """See `Reranker`.

        Raises:
            Crowded: when others were served for too long.
            Exception: what `inside` raised.
        """
        return self._calls(requests, timeout_s=self.timeout_s)

    def calibrate(self) -> None:
        """See `Reranker`."""
        self.inside.calibrate()

    def _score_all(self, calls: Sequence[Sequence[RerankRequest]]) -> list[RerankResult]:
        asked = [request for requests in calls for request in requests]
        share_ms = PLANNED * 1000 * self.timeout_s / max(1, len(asked))
        found = self.inside.score(
            [one if one.max_ms is None else replace(one, max_ms=min(one.max_ms, share_ms)) for one in asked]
        )
        if len(calls) == 1:
            return [found]
        ends = accumulate(map(len, calls), initial=0)
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
