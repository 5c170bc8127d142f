from collections.abc import Iterator

import pytest
import torch

from retrieval.towers import TowerConfig
from tests.retrieval.lesson import KINDS, sample


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models of a few hundred weights are slower on several threads, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> TowerConfig:
    """Settings of towers of each kind."""
    return KINDS[request.param]


@pytest.fixture(params=[False, True], ids=["full", "sampled"])
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the softmax is over a sample: not as it is for a catalog of a few items, and then as for a large one."""
    sample(monkeypatch, sampled=request.param)
    return request.param
