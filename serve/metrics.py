"""What a server tells Prometheus."""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from recommend.asking import Served
from recommend.service import Service
from rerank.base import RerankResult
from serve.workers import SHARED_FOLDER

TIMES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DEPTHS = (0, 2, 5, 10, 20, 50, 100, 200)
FAILED, SHALLOW, SKIPPED = "reranker failed", "overload: fewer candidates", "overload: not reranked"


class Metrics:
    """Counters of one server; with several workers, of all of them together."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        self.requests = Counter("tandem_requests", "Answers by route and status", ["route", "status"], registry=own)
        self.request_seconds = Histogram(
            "tandem_request_seconds", "Whole requests", ["route"], buckets=TIMES, registry=own
        )
        self.stage_seconds = Histogram(
            "tandem_stage_seconds", "Stages of answers", ["stage"], buckets=TIMES, registry=own
        )
        self.depth = Histogram("tandem_depth", "Candidates reranked a recommendation", buckets=DEPTHS, registry=own)
        self.tokens = Counter("tandem_tokens", "Tokens of the reranker: fed or remembered", ["kind"], registry=own)
        self.reranked = Counter(
            "tandem_recommendations",
            "Recommendations, reranked or not, by what they rest on",
            ["reranked", "basis"],
            registry=own,
        )
        self.gated = Counter("tandem_gated", "Recommendations that the gate left in retrieval order", registry=own)
        self.tied = Counter("tandem_tied", "Recommendations whose candidates were all scored alike", registry=own)
        self.remembered = Counter("tandem_cache_hits", "Answers whose history was remembered", registry=own)
        self.degraded = Counter("tandem_degraded", "Recommendations that are less than asked", ["reason"], registry=own)
        self.events = Counter("tandem_events", "Events by result", ["result"], registry=own)
        self.refused = Counter("tandem_refused", "Requests refused under load", registry=own)
        self.in_flight = Gauge(
            "tandem_in_flight", "Requests under way or waiting", registry=own, multiprocess_mode="livesum"
        )
        self.reranker_ready = Gauge(
            "tandem_reranker_ready", "Whether the reranker answers", registry=own, multiprocess_mode="livemin"
        )
        self.reranker_starts = Gauge(
            "tandem_reranker_starts", "Starts of the reranker's process", registry=own, multiprocess_mode="livemax"
        )
        self.reranker_waiting = Gauge(
            "tandem_reranker_waiting", "Candidates being read or waiting", registry=own, multiprocess_mode="livesum"
        )
        self.release = Gauge(
            "tandem_release",
            "1 for the release that is served",
            ["name", "retriever", "index", "reranker"],
            registry=own,
            multiprocess_mode="livemax",
        )
        self.release_refused = Gauge(
            "tandem_release_refused", "1 while a newer release is refused", registry=own, multiprocess_mode="livemax"
        )
        self._named: set[tuple[str, str, str, str]] = set()
        for reason in (FAILED, SHALLOW, SKIPPED):
            self.degraded.labels(reason)

    def served(self, served: Served) -> str:
        """Counts one recommendation; returns the kind of its degradation, empty where it has none."""
        answer, cost = served.answer, served.answer.cost
        for stage, ms in (
            ("lookup", served.lookup_ms),
            ("retrieval", cost.retrieval_ms),
            ("rerank", cost.rerank_ms),
            ("explain", cost.explain_ms),
        ):
            self.stage_seconds.labels(stage).observe(ms / 1000)
        self.depth.observe(cost.reranked)
        self._read(cost.prompt_tokens, cost.cached_tokens)
        self.reranked.labels("yes" if cost.reranked else "no", answer.basis.value).inc()
        if answer.gated:
            self.gated.inc()
        if cost.tied:
            self.tied.inc()
        reason = degradation(served)
        if reason:
            self.degraded.labels(reason).inc()
        return reason

    def reranked_documents(self, found: RerankResult, seconds: float) -> None:
        """Counts one answer of /v1/rerank."""
        self.stage_seconds.labels("rerank").observe(seconds)
        self._read(sum(found.prompt_tokens), sum(found.cached_tokens))

    def _read(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.tokens.labels("fed").inc(prompt_tokens - cached_tokens)
        self.tokens.labels("remembered").inc(cached_tokens)
        if cached_tokens:
            self.remembered.inc()

    def show(self, service: Service) -> None:
        """Sets what is a state and no count; each worker's own, whoever of them is asked for all."""
        serving = service.serving
        release = serving.release
        labels = (serving.name, str(release.retriever), str(release.index), str(release.reranker))
        for other in self._named - {labels}:
            self.release.labels(*other).set(0)
        self._named.add(labels)
        self.release.labels(*labels).set(1)
        self.release_refused.set(int(bool(service.refused)))
        self.reranker_waiting.set(serving.load.waiting)
        if serving.child is not None:
            self.reranker_ready.set(int(serving.child.is_ready))
            self.reranker_starts.set(serving.child.starts)

    def text(self, service: Service) -> tuple[bytes, str]:
        """Everything, in Prometheus' own form, and the form's name."""
        self.show(service)
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def degradation(served: Served) -> str:
    """What kind of a degradation an answer has; empty where none."""
    answer = served.answer
    if answer.degraded:
        return FAILED
    if answer.gave_way:
        return SHALLOW if answer.cost.reranked else SKIPPED
    return ""
