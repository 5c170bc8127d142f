"""A reranker too slow for what is asked reads less of it, and is neither ended nor started anew."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.workspace import open_workspace
from recommend.batched import PLANNED, BatchedReranker
from recommend.release import load_model
from recommend.service import Service
from recommend.supervised import SupervisedReranker
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.budget import Cap, Cut
from serve.context import Server
from serve.limits import ServeConfig
from store.artifacts import Run
from tests.pipeline.shop import weigh_reranker
from tests.serve.conftest import Client

MS_PER_TOKEN = 60.0
LIMIT_S = 2.0
"""Some 33 tokens, of which 26 are planned with; eight candidates behind a history are at least 28."""


class Slow:
    """The shop's own reranker on a machine that takes its time for every token."""

    name = "slow"

    def __init__(self, root: Path, key: str) -> None:
        self.inside = load_model(Run(root), key)
        for tokens in range(10, 100, 10):
            self.inside.pace.observe(tokens, MS_PER_TOKEN * tokens)
        score_row = self.inside.score_row

        def slowly(parts: Sequence[Any], *how: Any) -> Any:
            time.sleep(MS_PER_TOKEN / 1000 * sum(part.tokens for part in parts))
            return score_row(parts, *how)

        self.inside.score_row = slowly

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        return self.inside.score(requests)

    def calibrate(self) -> None:
        self.inside.calibrate()


def slow(root: Path, key: str) -> Reranker:
    return Slow(root, key)


@pytest.fixture(scope="module")
def client(shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = shop.copy(tmp_path_factory.mktemp("slow"))
    weigh_reranker(root, retrieval=0.1, reranker=1.0)
    service = Service(
        Run(root),
        configure=lambda: open_workspace(root).config.recommending,
        overload=ServeConfig().overload,
        time_limit_s=LIMIT_S,
        opener=lambda run, key, _: SupervisedReranker(partial(slow, run.root, key), timeout_s=LIMIT_S),
    )
    service.serving.child.wait_until_ready()
    yield Client(Server(service, ServeConfig(time_limit_ms=30_000), None))
    service.close()


def test_a_recommendation_is_reranked_as_deep_as_the_limit_lets(client: Client) -> None:
    client.post("/v1/recommend", {"user_id": "u012", "rerank": "never"})  # what is slow once only
    for user in ("u010", "u011"):
        answer = client.post("/v1/recommend", {"user_id": user}).json()
        assert not answer["degraded"], answer["reason"]
        assert 2 <= answer["usage"]["reranked"] < 8
        assert answer["left_out"].endswith("(max_ms)")
    assert client.service.serving.child.starts == 1


def test_documents_are_read_as_far_as_the_limit_lets_and_the_answer_says_so(client: Client) -> None:
    answer = client.post("/v1/rerank", {"query": "lum", "documents": ["sol"] * 40}).json()
    read = len(answer["results"])
    assert 2 <= read < 40
    assert answer["left_out"] == 40 - read
    assert client.service.serving.child.starts == 1


class Told:
    """Remembers what it was asked."""

    name = "told"

    def __init__(self) -> None:
        self.asked: list[RerankRequest] = []

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        self.asked += requests
        count = len(requests)
        scores = [np.zeros(len(request.candidates), dtype=np.float32) for request in requests]
        return RerankResult(scores, [1] * count, [0] * count, [0] * count, [(Cut.NONE, Cap.NONE)] * count)

    def calibrate(self) -> None:
        """Nothing to learn."""


def test_who_is_read_together_shares_the_time_of_one_call() -> None:
    told = Told()
    batched = BatchedReranker(told, most=8, window_ms=5000, expected=lambda: 2, timeout_s=10)
    one = RerankRequest(("h",), ("a", "b"), max_ms=90_000.0)
    callers = [
        threading.Thread(target=batched.score, args=([request],)) for request in (one, replace(one, max_ms=3000.0))
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    less, more = sorted(request.max_ms or 0 for request in told.asked)
    assert 0 < less <= 3000  # its own cap, less what it waited
    assert more == PLANNED * 10_000 / 2
    batched = BatchedReranker(told, most=8, window_ms=0, expected=lambda: 1, timeout_s=10)
    batched.score([replace(one, max_ms=None)])
    assert told.asked[-1].max_ms is None
