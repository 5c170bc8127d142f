"""A real server on a free port of this machine, for tests that ask from outside."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from config import read_config
from recommend.recommender import RecommendConfig
from recommend.service import Service
from recommend.serving import Opener
from recommend.supervised import SupervisedReranker
from rerank.base import RerankRequest, RerankResult
from serve.app import create_app
from serve.context import Server
from serve.keys import Keys
from serve.limits import ServeConfig
from serve.page_files import PAGE
from store.artifacts import Run

PATIENCE_S = 60.0


@contextmanager
def hosted(root: Path, *, keys: Keys | None = None, opener: Opener | None = None) -> Iterator[str]:
    """The address of a server of this run, with its page; without keys it is open to this machine."""
    config = read_config(Run(root).config_path)
    service = Service(
        Run(root),
        configure=lambda: config.recommending,
        overload=ServeConfig().overload,
        time_limit_s=PATIENCE_S,  # a busy machine is no fault of the page
        opener=opener,
    )
    limits = ServeConfig(time_limit_ms=int(PATIENCE_S * 1000))
    app = create_app(Server(service, limits, keys, PAGE))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=running.run, daemon=True)
    try:
        if service.serving.child is not None:
            service.serving.child.wait_until_ready()
        thread.start()
        yield _address(running)
    finally:
        running.should_exit = True
        thread.join(PATIENCE_S)
        service.close()


def failing(run: Run, key: str, config: RecommendConfig) -> SupervisedReranker:
    """In place of the run's reranker, in a child like any other: one that never has an answer."""
    return SupervisedReranker(_NoAnswer, timeout_s=PATIENCE_S)


class _NoAnswer:
    name = "no answer"

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        raise RuntimeError("out of order <b>today</b>")

    def calibrate(self) -> None:
        pass


def _address(running: uvicorn.Server) -> str:
    end = time.monotonic() + PATIENCE_S
    while not running.started:
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
    host, port = running.servers[0].sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"
