"""What of a retriever is counted, not trained: seconds of work that any towers can stand on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy.sparse as sp

from data.schema import Catalog, Histories, Holdout, Scores
from fusion.linear import LinearFusion
from index.base import VectorIndex
from retrieval.distributed import ALONE, Team
from retrieval.encode import TextSpace
from retrieval.ensemble import TowerEnsemble
from retrieval.likeness import Likeness
from retrieval.retriever import TEXT, TRANSITIONS, Retriever, RetrieverConfig, transforms
from retrieval.stand_ins import find_stand_ins
from retrieval.topics import Topics
from retrieval.trackers import Log
from retrieval.transitions import Transitions, TransitionsConfig, count_pairs
from retrieval.trend import Trend
from retrieval.validation import catalog_ndcg10
from retrieval.words import Words

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Groundwork:
    """The sources of a retriever beside its towers.

    Attributes:
        transitions: with the stand-ins of items without a past.
        recent_popularity: (N,) float32 interactions of the last days of the log.
    """

    words: Words
    topics: Topics
    transitions: Transitions
    trend: Trend
    recent_popularity: Scores

    @classmethod
    def lay(
        cls,
        train: Histories,
        catalog: Catalog,
        text_vectors: Scores,
        *,
        validation: Holdout,
        config: RetrieverConfig,
        log: Log,
        chosen: TransitionsConfig | None = None,
        team: Team = ALONE,
    ) -> "Groundwork":
        """Counts all of it.

        Args:
            train: one list a user; nothing of a held-out item.
            text_vectors: (N, E) float32 of length 1, by the untuned encoder.
            validation: users of group B, who choose how transitions are counted; may be empty.
            chosen: how transitions are counted, where validation chose it before.
            team: whose leader finds the topics.
        """
        taken = np.bincount(train.item_rows, minlength=len(catalog))
        words = Words.of(catalog.texts)
        text = TextSpace.of(text_vectors, whiten=config.whiten_text)(text_vectors)
        stand_ins = find_stand_ins(Likeness(text, words), taken)
        log({"stage": "stand-ins", "items_without_a_past": int((taken == 0).sum())})
        return cls(
            words=words,
            topics=Topics.of(words, config.topics, team),
            transitions=fit_transitions(train, stand_ins, validation=validation, config=config, log=log, chosen=chosen),
            trend=Trend.fit(train, len(catalog), config.trend_days),
            recent_popularity=recent_popularity(train, len(catalog), config.recent_days),
        )

    def topics_of_items(self) -> Scores:
        """(N, K) float32, what towers read beside the text vectors."""
        return self.topics.read(self.words.vectors)

    def under(
        self,
        towers: TowerEnsemble,
        text_vectors: Scores,
        *,
        config: RetrieverConfig,
        build_index: Callable[[Scores], VectorIndex],
        fusion: LinearFusion | None = None,
    ) -> Retriever:
        """The retriever of these towers.

        Args:
            text_vectors: (N, E) float32 of length 1, those that the towers were trained on.
            build_index: makes an index of (N, D) item vectors.
            fusion: None: weights that are typical of real catalogs, until they are fitted.
        """
        item_vectors = towers.item_vectors()
        space = TextSpace.of(text_vectors, whiten=config.whiten_text)
        return Retriever(
            config=config,
            towers=towers,
            transitions=self.transitions,
            fusion=fusion or _usual_fusion(towers, self.trend),
            item_vectors=item_vectors,
            text=space(text_vectors),
            text_space=space,
            words=self.words,
            topics=self.topics,
            trend=self.trend,
            recent_popularity=self.recent_popularity,
            index=build_index(item_vectors),
        )


def recent_popularity(train: Histories, n_items: int, days: int) -> Scores:
    """(N,) float32 interactions of each item in the last `days` days of the log, or in all of it without time.

    Items that tie, most of all at 0, are told apart by their interactions over all time.
    """
    overall = np.bincount(train.item_rows, minlength=n_items).astype(np.float32)
    if train.timestamps is None or not (train.timestamps != Histories.NO_TIME).any():
        return overall
    recent = train.timestamps > train.timestamps.max() - days * SECONDS_PER_DAY
    counts = np.bincount(train.item_rows[recent], minlength=n_items).astype(np.float32)
    return np.asarray(counts + overall / (overall.sum() + 1), dtype=np.float32)


def fit_transitions(
    train: Histories,
    stand_ins: sp.csr_matrix,
    *,
    validation: Holdout,
    config: RetrieverConfig,
    log: Log,
    chosen: TransitionsConfig | None,
) -> Transitions:
    """Counts as `chosen`, or in the way that validation finds best, or as configured where it has nobody to ask."""
    n_items = stand_ins.shape[0]
    if chosen is None and (not config.tune_transitions or not len(validation)):
        chosen = config.transitions
    if chosen is not None:
        return replace(Transitions.fit(train, n_items, chosen), stand_ins=stand_ins)
    best: tuple[float, Transitions] | None = None
    for counted, readings in _ways_to_count(train, config.transitions):
        counts = count_pairs(train, n_items, counted)
        for (items, decay), column_power in product(readings, (0.1, 0.3)):
            setting = counted.model_copy(
                update={"history_items": items, "history_decay": decay, "column_power": column_power}
            )
            fitted = replace(Transitions.from_counts(counts, setting), stand_ins=stand_ins)
            ndcg10 = catalog_ndcg10(lambda h, t=fitted: t.scores(h).toarray(), validation, n_items=n_items)  # type: ignore[misc]
            if best is None or ndcg10 > best[0]:
                best = ndcg10, fitted
    assert best is not None
    log({"stage": "transitions", "validation_ndcg@10": round(best[0], 5), "chosen": best[1].config.model_dump()})
    return best[1]


def _ways_to_count(
    train: Histories, config: TransitionsConfig
) -> Iterator[tuple[TransitionsConfig, tuple[tuple[int, float], ...]]]:
    """How pairs may be counted, each with the histories (items, decay) over which they may be summed."""
    recent = ((10, 0.5), (10, 0.7), (20, 0.8), (30, 0.9))
    yield config, recent
    if train.timestamps is None or not (train.timestamps != Histories.NO_TIME).any():
        # The order of a log without time may mean nothing: then pairs count the same both ways and at any distance.
        yield config.model_copy(update={"gap_decay": 1.0, "backward": 1.0}), (*recent, (100, 0.97))


def _usual_fusion(towers: TowerEnsemble, trend: Trend) -> LinearFusion:
    """Weights until they are fitted, or where nothing was held out to fit them on; typical of real catalogs."""
    weights = {**dict.fromkeys(map(str, towers.kinds), 0.5 / len(towers.kinds)), TRANSITIONS: 0.4, TEXT: 1.5}
    columns = transforms(towers.kinds, trend)
    return LinearFusion(columns, dict.fromkeys(columns, 0.0) | weights, dict.fromkeys(columns, 1.0))
