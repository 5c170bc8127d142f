"""One release, opened to be served: its Recommender, its reranker in a child, and what people look things up with."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from data.schema import Scores
from recommend.batched import BatchedReranker
from recommend.catalog import LiveCatalog
from recommend.item_filter import Conditions
from recommend.ledger import LEDGER
from recommend.overload import OverloadConfig, RerankLoad
from recommend.recommender import RecommendConfig, Recommender
from recommend.search import Directory
from recommend.wishes import WishReader
from rerank.base import Reranker
from store.artifacts import Release, Run
from store.fingerprint import fingerprint


class ServedReranker(Reranker, Protocol):
    """A reranker that may be away for a while; `SupervisedReranker` is one."""

    @property
    def starts(self) -> int:
        """How often its model was loaded."""
        ...

    @property
    def trouble(self) -> str:
        """Why it cannot be; empty where it can."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a call would be answered."""
        ...

    def revive(self) -> None:
        """Starts it again where it has ended without being asked; to be called from time to time."""
        ...

    def forget(self) -> None:
        """Drops the histories that it remembers."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


Opener = Callable[[Run, str, RecommendConfig], ServedReranker]
"""Starts the reranker of a key; it has calibrated before it says that it is ready."""


@dataclass(frozen=True)
class Serving:
    """What requests are answered from; a request keeps the one that it began with.

    Attributes:
        catalog: the items as they are now, for whoever changes them.
        name: of the release, short; the same wherever the same artifacts are served.
        child: who holds the model, in a process of its own; None where the release has no reranker.
    """

    release: Release
    name: str
    catalog: LiveCatalog
    recommender: Recommender
    wishes: WishReader
    directory: Directory
    conditions: Conditions
    load: RerankLoad
    child: ServedReranker | None

    @property
    def reranker_is_ready(self) -> bool:
        """Whether a reranker, where there is one, would answer."""
        return self.child is None or self.child.is_ready

    @property
    def items(self) -> int:
        """How many may be shown."""
        available = self.recommender.retriever.available
        return len(self.recommender.catalog) if available is None else int(available.sum())

    def changed(self) -> "Serving":
        """The same over the items as they are now; no model is loaded for it."""
        stages = self.catalog.stages
        return replace(
            self,
            recommender=self.recommender.over(stages),
            directory=Directory(stages.dataset, stages.retriever.available),
            conditions=Conditions(stages.dataset.catalog),
        )


@dataclass(frozen=True)
class ServingPlan:
    """How releases of a run are opened.

    Attributes:
        configure: reads how to recommend, anew for each release.
        opener: starts a reranker.
        expected: how many requests are under way.
        timeout_s: longest wait for the reranker's turn.
    """

    run: Run
    configure: Callable[[], RecommendConfig]
    overload: OverloadConfig
    opener: Opener
    expected: Callable[[], int]
    timeout_s: float

    def open(self, *, before: Serving | None = None) -> Serving:
        """Loads what is published; a reranker and an encoder that were served before go on.

        Raises:
            MissingStep, CorruptArtifact, Mismatch: as `load_stages`; no child is left behind then.
        """
        config = self.configure()
        child: ServedReranker | None = None
        kept: ServedReranker | None = None

        def opened(key: str) -> Reranker:
            nonlocal child, kept
            if before is not None and before.release.reranker == key:
                kept = before.child
            child = kept or self.opener(self.run, key, config)
            return BatchedReranker(
                child,
                most=self.overload.batch,
                window_ms=self.overload.batch_window_ms,
                expected=self.expected,
                timeout_s=self.timeout_s,
            )

        def encode(texts: Sequence[str]) -> Scores:
            return wishes.encode(texts)

        try:
            # What it has opened is the release to go by: another may be published at any moment.
            catalog = LiveCatalog(self.run, encode, opened=opened)
            release = catalog.published.release
            goes_on = before is not None and before.release.retriever == release.retriever
            wishes = before.wishes if before is not None and goes_on else WishReader(self.run, release)
            return self._serving(catalog, config, wishes, child)
        except BaseException:
            if child is not None and child is not kept:
                child.close()
            raise

    def _serving(
        self, catalog: LiveCatalog, config: RecommendConfig, wishes: WishReader, child: ServedReranker | None
    ) -> Serving:
        stages, load = catalog.stages, RerankLoad(self.overload)
        if stages.dataset.catalog.vectors is None:
            wishes.warm()
        return Serving(
            release=stages.release,
            name=release_name(stages.release),
            catalog=catalog,
            recommender=Recommender(stages, config, ledger=self.run.root / LEDGER, load=load),
            wishes=wishes,
            directory=Directory(stages.dataset, stages.retriever.available),
            conditions=Conditions(stages.dataset.catalog),
            load=load,
            child=child,
        )


def release_name(release: Release) -> str:
    """Twelve hexadecimal digits that follow from the artifacts alone, whatever items have changed since."""
    return fingerprint(asdict(release.models))[:12]
