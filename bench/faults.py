"""A server whose reranker does what a file says: raise, hang, return NaN, exhaust memory; and what it answers then."""

import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.served import request, started_load
from config import read_config
from recommend.release import load_model
from recommend.service import Service
from recommend.supervised import SupervisedReranker
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.packed import PackedReranker
from serve.context import Server
from serve.limits import ServeConfig
from serve.metrics import FAILED
from serve.server import serve_until_told
from serve.sockets import bound, url_of
from store.artifacts import Run

BACK_S = 5.0
"""Within so many seconds of a fault's end, loading of the model aside, the reranker is read again."""


class Fault(StrEnum):
    """What goes wrong."""

    RAISE = "raise"
    HANG = "hang"
    NAN = "nan"
    MEMORY = "memory"


class Faulty:
    """The run's own reranker, with the fault that a file names while it names one."""

    name = "faulty"

    def __init__(self, inside: PackedReranker[Any], file: Path) -> None:
        self.inside, self.file = inside, file

    def score(self, requests: Sequence[RerankRequest]) -> RerankResult:
        """As the file says."""
        fault = self.file.read_text() if self.file.exists() else ""
        if fault == Fault.RAISE:
            raise RuntimeError("a fault on purpose")
        if fault == Fault.HANG:
            time.sleep(3600)
        if fault == Fault.MEMORY:
            _exhaust()
        found = self.inside.score(requests)
        if fault == Fault.NAN:
            return replace(found, scores=[np.full_like(scores, np.nan) for scores in found.scores])
        return found

    def calibrate(self) -> None:
        """See Reranker."""
        self.inside.calibrate()

    def forget(self) -> None:
        """See SupervisedReranker."""
        self.inside.forget()


def faulty(root: Path, key: str, file: Path) -> Reranker:
    """In the child."""
    return Faulty(load_model(Run(root), key), file)


def _exhaust() -> None:
    """Takes memory until the system refuses: a quarter of a GB beyond what this process has."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 28), resource.RLIM_INFINITY))
    taken = []
    while True:
        taken.append(np.ones(1 << 22))


def survive(run: Path, kind: Fault, *, seconds: float) -> dict[str, Any]:
    """Serves under load, breaks the reranker for so long, mends it, and says what came of it."""
    limits = ServeConfig(time_limit_ms=1000)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fault"
        made: list[Server] = []

        def make() -> Server:
            service = Service(
                Run(run),
                configure=lambda: read_config(Run(run).config_path).recommending,
                overload=limits.overload,
                time_limit_s=limits.time_limit_ms / 1000,
                opener=lambda found, key, _: SupervisedReranker(
                    partial(faulty, found.root, key, file), timeout_s=limits.time_limit_ms / 1000
                ),
            )
            made.append(Server(service, limits, None))
            return made[0]

        listening, up, ends = bound("127.0.0.1", 0), threading.Event(), threading.Event()
        serving = threading.Thread(
            target=serve_until_told, args=(make, listening), kwargs={"started": up.set, "ends": ends}, daemon=True
        )
        serving.start()
        assert up.wait(600)
        try:
            return _broken_and_mended(made[0], url_of(listening), file, kind, seconds=seconds)
        finally:
            ends.set()
            serving.join(60)
            listening.close()


def _broken_and_mended(server: Server, url: str, file: Path, kind: Fault, *, seconds: float) -> dict[str, Any]:
    service = server.service
    child: Any = service.serving.child
    child.wait_until_ready()
    load_s = _load_seconds(child)
    users = service.serving.recommender.users.ids[:500]
    bodies = [["POST", "/v1/recommend", {"user_id": user, "rerank": "always"}, ""] for user in users]
    failed = server.metrics.degraded.labels(FAILED)
    before = failed._value.get()
    shooting = started_load(url, bodies, seconds=seconds + 2, rate=10, connections=32)
    time.sleep(1)
    file.write_text(kind)
    time.sleep(seconds)
    answer = json.loads(request(f"{url}/v1/recommend", json.dumps(bodies[0][2]).encode())[1])
    in_order = [item["retrieval_rank"] for item in answer["items"]] == list(range(1, len(answer["items"]) + 1))
    file.unlink()
    back_s = _seconds_until_read(url, bodies[0][2])
    found = json.loads(shooting.communicate()[0])
    counted = failed._value.get() - before
    all_good = set(found["statuses"]) == {"200"} and not found["broken"]
    told = {
        "all_200": all_good,
        "degraded_in_retrieval_order": bool(answer["degraded"] and in_order),
        "degraded": found["degraded"],
        "counted": counted,
        "back_s": round(back_s, 2),
        "load_s": round(load_s, 2),
    }
    survived = all_good and told["degraded_in_retrieval_order"] and counted >= 1 and back_s - load_s <= BACK_S
    return {"survived": bool(survived), **told}


def _load_seconds(child: SupervisedReranker) -> float:
    """How long a fresh child takes to load the model."""
    with SupervisedReranker(child._load, timeout_s=1.0) as other:
        started = time.perf_counter()
        other.wait_until_ready()
        return time.perf_counter() - started


def _seconds_until_read(url: str, body: Any) -> float:
    """Until it has read candidates, be they fewer under this load: giving way is no fault."""
    started = time.perf_counter()
    while time.perf_counter() - started < 120:
        answer = json.loads(request(f"{url}/v1/recommend", json.dumps(body).encode())[1])
        if answer["usage"]["reranked"]:
            break
        time.sleep(0.05)
    return time.perf_counter() - started
