"""Calls of a reranker put together: who shares one, and what of its time is left to it."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from recommend.batched import BatchedReranker
from rerank.base import RerankRequest, RerankResult
from rerank.budget import Cap, Cut


class Watched:
    """Scores each candidate by its length; remembers its calls, and holds the first back until it may go on."""

    name = "watched"

    def __init__(self) -> None:
        self.calls: list[list[RerankRequest]] = []
        self.entered, self.may_go = threading.Event(), threading.Event()

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        self.calls.append(list(requests))
        if not self.entered.is_set():
            self.entered.set()
            self.may_go.wait(30)
        none = [0] * len(requests)
        scores = [np.array([len(text) for text in one.candidates], dtype=np.float32) for one in requests]
        return RerankResult(scores, none, none, none, [(Cut.NONE, Cap.NONE)] * len(requests))

    def calibrate(self) -> None:
        """Nothing to learn."""


def asked(text: str, max_ms: float | None = None) -> list[RerankRequest]:
    return [RerankRequest((), (text,), max_ms=max_ms)]


def test_the_wait_for_the_turn_is_deducted_and_who_has_a_cap_of_time_shares_no_call_with_who_has_none():
    inside = Watched()
    reranker = BatchedReranker(inside, most=8, window_ms=0, expected=lambda: 1, timeout_s=30)
    wanted = [asked("bb", 10_000), asked("ccc", 50), asked("dddd"), asked("eeeee"), asked("ffffff", 20_000)]
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(reranker.score, asked("a", 10_000))
        assert inside.entered.wait(30)
        others = []
        for place, one in enumerate(wanted, start=1):
            others.append(pool.submit(reranker.score, one))
            while len(reranker._calls) < place:
                time.sleep(0.001)
        time.sleep(0.2)
        inside.may_go.set()
        assert first.result(30).scores[0].tolist() == [1]
        assert [other.result(30).scores[0].tolist() for other in others] == [[2], [3], [4], [5], [6]]
    alone, *shared = inside.calls
    assert 9_000 < alone[0].max_ms <= 10_000
    assert [[len(one.candidates[0]) for one in call] for call in shared] == [[2, 3], [4, 5], [6]]
    (patient, hurried), (none, other), (last,) = shared
    assert patient.max_ms <= 10_000 - 200
    assert hurried.max_ms == 0
    assert (none.max_ms, other.max_ms) == (None, None)
    assert last.max_ms <= 20_000 - 200
