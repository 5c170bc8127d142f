"""A service on the trained shop, its reranker in this process, and a client without a network between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipeline.workspace import open_workspace
from recommend.recommender import RecommendConfig
from recommend.release import load_model
from recommend.service import Service
from rerank.base import RerankRequest, RerankResult
from serve.app import create_app
from serve.context import Server
from serve.keys import Keys, Scope
from serve.limits import ServeConfig
from store.artifacts import Run
from tests.pipeline.shop import Shop, weigh_reranker

JSON = {"content-type": "application/json"}


class Here:
    """The shop's own reranker in this process, which takes no start; `fault` is raised in place of an answer."""

    name, starts, trouble = "here", 1, ""

    def __init__(self, run: Run, key: str, config: RecommendConfig) -> None:
        self.inside = load_model(run, key)
        self.inside.calibrate()
        self.fault: Exception | None = None
        self.is_ready = True
        self.forgotten = self.revived = 0
        self.closed = False

    def score(self, requests: list[RerankRequest]) -> RerankResult:
        if self.fault is not None:
            raise self.fault
        return self.inside.score(requests)

    def calibrate(self) -> None:
        self.inside.calibrate()

    def revive(self) -> None:
        self.revived += 1

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed = True


@dataclass
class Client:
    """Asks an application as httpx would over a socket."""

    server: Server
    key: str | None = None
    app: Any = field(init=False)

    def __post_init__(self) -> None:
        self.app = create_app(self.server)

    @property
    def service(self) -> Service:
        return self.server.service

    def ask(self, method: str, path: str, **how: Any) -> httpx2.Response:
        return asyncio.run(self._ask(method, path, **how))

    def get(self, path: str, **how: Any) -> httpx2.Response:
        return self.ask("GET", path, **how)

    def post(self, path: str, body: Any, **how: Any) -> httpx2.Response:
        return self.ask("POST", path, json=body, **how)

    async def _ask(self, method: str, path: str, **how: Any) -> httpx2.Response:
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            return await client.request(method, path, **how)


def service_on(root: Path, **limits: Any) -> Service:
    return Service(
        Run(root),
        configure=lambda: open_workspace(root).config.recommending,
        overload=ServeConfig(**limits).overload,
        time_limit_s=10.0,
        opener=Here,
    )


@pytest.fixture(scope="module")
def root(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shop whose reranker counts."""
    copied = shop.copy(tmp_path_factory.mktemp("served"))
    weigh_reranker(copied, retrieval=0.1, reranker=1.0)
    return copied


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    """Without keys."""
    service = service_on(root)
    yield Client(Server(service, ServeConfig(max_limit=40, max_history=30, max_body_kb=8), None))
    service.close()


@pytest.fixture(scope="module")
def locked(client: Client, root: Path) -> Iterator[Client]:
    """The same behind keys; the client has none at first."""
    keys = Keys(root)
    yield Client(Server(client.service, client.server.limits, keys))
    keys.close()


@pytest.fixture
def reader(locked: Client) -> Client:
    return Client(locked.server, _key(locked, Scope.READ))


@pytest.fixture
def writer(locked: Client) -> Client:
    return Client(locked.server, _key(locked, Scope.READ, Scope.WRITE))


def _key(client: Client, *scopes: Scope) -> str:
    assert client.server.keys is not None
    return client.server.keys.add(frozenset(scopes))
