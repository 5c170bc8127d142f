"""A recommender that keeps up with what other processes publish and change."""

import threading

from index.published import Fresh, PublishedIndex
from recommend.recommender import RecommendConfig, Recommender
from recommend.release import Stages, as_changed, load_base
from store.artifacts import Run, Verify


class FreshRecommender:
    """Gives a Recommender of what is published now; one that was given out before stays as it was.

    A change of items costs the time to put them beside the catalog; a new release is loaded whole, while the
    threads that ask meanwhile wait for it.

    Args:
        run: the run directory.
        config: what an answer looks like.
        with_reranker: whether to load the second stage.

    Raises:
        MissingStep, CorruptArtifact, Mismatch: as `load_stages`.
    """

    def __init__(self, run: Run, config: RecommendConfig, *, with_reranker: bool = True) -> None:
        self.run, self.config, self._with_reranker = run, config, with_reranker
        self._lock = threading.Lock()
        self._published = PublishedIndex(run, verify=Verify.FULL)
        self._base, self._recommender = self._loaded()

    def current(self) -> Recommender:
        """The present recommender; some microseconds where nothing has changed.

        Raises:
            CorruptArtifact, Mismatch: when what is new is damaged; the one given out before still answers.
        """
        with self._lock:
            fresh = self._published.refresh()
            if fresh is Fresh.REPLACED:
                self._base, self._recommender = self._loaded()
            elif fresh is Fresh.CHANGED:
                self._recommender = self._recommender.over(as_changed(self._base, self._published))
            return self._recommender

    def _loaded(self) -> tuple[Stages, Recommender]:
        base = load_base(self.run, self._published, with_reranker=self._with_reranker)
        return base, Recommender(as_changed(base, self._published), self.config)
