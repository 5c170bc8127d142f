"""One reranker for several processes: what a hub passes on."""

from collections.abc import Iterator, Sequence

import pytest

from recommend.microbatch import Crowded
from recommend.shared import RerankerHub, SharedReranker
from rerank.base import RerankRequest, RerankResult


class Child:
    """Stands for a supervised reranker that has too much to do."""

    name, starts, trouble, is_ready = "child", 1, "", True

    def __init__(self) -> None:
        self.forgotten = self.closed = 0

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        raise Crowded("others were served for 2 s")

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def children() -> dict[str, Child]:
    return {}


@pytest.fixture
def hub(children: dict[str, Child]) -> Iterator[RerankerHub]:
    made = RerankerHub(lambda key: children.setdefault(key, Child()), batch=4, window_ms=0, timeout_s=5)
    yield made
    made.close()


def test_that_it_is_too_busy_is_no_failure(hub: RerankerHub):
    with pytest.raises(Crowded, match="others were served for 2 s"):
        SharedReranker(hub.address, "a").score([RerankRequest((), ("x",))])
