"""First stage: the union of what the towers find in the index and what the transitions suggest, fused."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data import schema
from data.schema import NO_ITEM, Candidates, Histories, Mask, Rows, Scores
from fusion.linear import LinearFusion, Transform
from fusion.network import FusionNetwork, NetworkConfig
from index.base import VectorIndex
from retrieval.distil import DistilConfig
from retrieval.encode import EncoderConfig, TextSpace
from retrieval.ensemble import TowerEnsemble
from retrieval.finetune import FinetuneConfig
from retrieval.likeness import Likeness
from retrieval.own_weights import with_cold, with_short
from retrieval.topics import Topics
from retrieval.towers import SequenceConfig, TextConfig, TowerConfig
from retrieval.train import TrainConfig
from retrieval.transitions import Transitions, TransitionsConfig
from retrieval.trend import Trend
from retrieval.user_tower import UserTowerKind
from retrieval.words import Words

TRANSITIONS = schema.TRANSITIONS
TEXT = "text profile"
LAST_TEXT = "text of the last item"
LIKENESS = "likeness to the history"
POPULARITY = "popularity"

USERS_AT_ONCE = 256
SAMPLE_SEED = 20_140_723


class RetrieverConfig(BaseModel):
    """Everything that makes a retriever."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: EncoderConfig = Field(EncoderConfig(), description="the sentence-transformer")
    whiten_text: bool = Field(
        False, description="give all directions of the centred text vectors about the same spread over the catalog"
    )
    topics: int = Field(512, ge=0, description="of the catalog's words, read by towers beside text vectors; 0: none")
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="tuning of the sentence-transformer itself")
    recency: TowerConfig = Field(TowerConfig(), description="towers that sum up the last items")
    sequence: SequenceConfig = Field(SequenceConfig(), description="towers that read the last items in order")
    text: TextConfig = Field(TextConfig(), description="towers that read the last items in words; off by default")
    train: TrainConfig = Field(TrainConfig(), description="training of the towers")
    distil: DistilConfig = Field(DistilConfig(), description="what a reranker teaches the user towers afterwards")
    transitions: TransitionsConfig = Field(TransitionsConfig(), description="counted item → item transitions")
    tune_transitions: bool = Field(True, description="choose history length, decay and column power on validation")
    per_source: int = Field(200, ge=1, description="items that each source brings to the union, at least")
    trend_days: tuple[int, ...] = Field(
        (3, 7, 30, 90, 365), description="windows in which an item's interactions are counted"
    )
    trending: int = Field(
        50, ge=0, description="items taken most in each of the two shortest windows, which join the union; 0: none"
    )
    short_history: int = Field(
        0,
        ge=0,
        description="histories of at most so many items weigh the sources in their own way, where cross-validation on "
        "group B gains by it; 0: all alike",
    )
    cold_targets: int = Field(
        0,
        ge=0,
        description="items that nobody took in training weigh the sources in their own way, where at least so many of "
        "group B's targets are such, and cross-validation gains by it; 0: all alike",
    )
    network: NetworkConfig = Field(NetworkConfig(), description="what orders the first places after the weighted sum")
    recent_days: int = Field(30, ge=1, description="span of the popular items that an empty history is given")

    @model_validator(mode="after")
    def _has_towers(self) -> Self:
        if not self.towers:
            raise ValueError(
                "recency.copies, sequence.copies and text.copies are all 0: there would be no towers to search by"
            )
        return self

    @model_validator(mode="after")
    def _reads_histories_as_far_as_items(self) -> Self:
        if self.text.copies and self.text.max_tokens < self.encoder.max_tokens:
            raise ValueError(
                f"text.max_tokens is {self.text.max_tokens}, encoder.max_tokens {self.encoder.max_tokens}: a history "
                "must be read at least as far as an item"
            )
        return self

    @property
    def towers(self) -> dict[UserTowerKind, TowerConfig]:
        """The kinds that are trained."""
        kinds = {
            UserTowerKind.RECENCY: self.recency,
            UserTowerKind.SEQUENCE: self.sequence,
            UserTowerKind.TEXT: self.text,
        }
        return {kind: config for kind, config in kinds.items() if config.copies}

    @property
    def reading(self) -> EncoderConfig:
        """How the encoder reads histories."""
        return self.encoder.model_copy(update={"max_tokens": self.text.max_tokens})

    def suited(self, train: Histories) -> Self:
        """The same with what is unset chosen by the data."""
        return self.model_copy(update={"sequence": self.sequence.suited(train)})


@dataclass(frozen=True)
class Retriever:
    """Candidates for any history, from an index of item vectors and a matrix of transitions.

    Attributes:
        item_vectors: (N, ΣD) float32, those in the index.
        text: (N, E) float32, text vectors as `text_space` maps them.
        text_space: their map, by which other texts are compared with them.
        words: the same texts as weighted words.
        topics: of these words, which the towers read beside the text vectors.
        trend: how often each item was taken of late.
        recent_popularity: (N,) float32 interactions of the last days of the log.
        available: (N,) bool, false for items that were removed and must never be a candidate; None: all are.
        network: what puts the first places by the fusion in another order; None: nothing does.
    """

    config: RetrieverConfig
    towers: TowerEnsemble
    transitions: Transitions
    fusion: LinearFusion
    item_vectors: Scores
    text: Scores
    text_space: TextSpace
    words: Words
    topics: Topics
    trend: Trend
    recent_popularity: Scores
    index: VectorIndex
    available: Mask | None = None
    network: FusionNetwork | None = None
    name: str = "retrieval"

    @property
    def linear(self) -> "Retriever":
        """The same by its weighted sum alone: what is asked where group A's answers must not be known beforehand."""
        return replace(self, network=None)

    def candidates(
        self, histories: Histories, depth: int, *, exclude_known: bool = True, where: Mask | None = None
    ) -> Candidates:
        """The best `depth` items of the union by fused score, with each source's score for each of them.

        An empty history is given the popular items of the last days; `POPULARITY`, a source that is there
        where any history is empty, has their score, and the others are 0.

        Args:
            where: (N,) the items that may be shown; None: all.
        """
        wanted = max(depth, self.config.per_source)
        parts = [self._union(batch, wanted, exclude_known=exclude_known, where=where) for batch in _batches(histories)]
        return concatenated([part.head(depth) for part in parts], depth)

    def unions(
        self, histories: Histories, depth: int = 0, *, exclude_known: bool = True, where: Mask | None = None
    ) -> Candidates:
        """The whole unions of which `candidates` gives the best `depth`."""
        wanted = max(depth, self.config.per_source)
        parts = [self._union(batch, wanted, exclude_known=exclude_known, where=where) for batch in _batches(histories)]
        return concatenated(parts, max((part.depth for part in parts), default=0))

    def search(
        self, histories: Histories, depth: int, *, exclude_known: bool = True, where: Mask | None = None
    ) -> Candidates:
        """What the towers alone find: one search in the index, with the towers' score under their names."""
        parts = []
        for batch in _batches(histories):
            known = batch.known if exclude_known else None
            users = self.towers.user_vectors(batch, self.item_vectors)
            score, rows = self.index.search(self.towers.weighted(users), depth, exclude=known, allowed=where)
            sources = self.towers.scores(users, self.item_vectors, np.maximum(rows, 0))
            parts.append(Candidates(rows, score, sources))
        return concatenated(parts, depth)

    def candidates_for_texts(
        self, query_vectors: Scores, histories: Histories, depth: int, *, where: Mask | None = None
    ) -> Candidates:
        """The items whose text is nearest to free-text queries, known items left out.

        Args:
            query_vectors: (B, E) float32, mapped by `text_space` like the catalog's text vectors.
            where: (N,) the items that may be shown; None: all.
        """
        scores = query_vectors @ self.text.T  # (B, N)
        if (shown := self._shown(where)) is not None:
            scores[:, ~shown] = -np.inf
        scores[histories.list_of_row, histories.item_rows] = -np.inf
        return best_of_dense(scores, depth, name=TEXT)

    def _union(self, histories: Histories, wanted: int, *, exclude_known: bool, where: Mask | None) -> Candidates:
        known = histories.known if exclude_known else None
        users = self.towers.user_vectors(histories, self.item_vectors)
        _, tower_rows = self.index.search(self.towers.weighted(users), wanted, exclude=known, allowed=where)
        recent = self.transitions.history_weights(histories)
        following = self.transitions.following(recent)
        shown = self._shown(where)
        rows = union(tower_rows, best_of_sparse(following, wanted, exclude=known, allowed=shown))
        rows = union(rows, self._trending(histories, known, shown))  # (B, K)
        unranked = self._sourced(rows, histories, users=users, recent=recent, following=following)
        candidates = self._ranked(unranked)
        empty = histories.lengths == 0
        return self._popular(candidates, empty, known, where) if empty.any() else candidates

    def _trending(self, histories: Histories, known: list[Rows] | None, shown: Mask | None) -> Rows:
        """(B, W) rows of what is in fashion when each user asks, known items and those not to be shown left out."""
        rows = self.trend.most_taken(histories.asked_at, len(histories), self.config.trending)
        if shown is not None:
            rows[~shown[rows]] = NO_ITEM
        if known is not None:
            for place, taken in enumerate(known):
                rows[place, np.isin(rows[place], taken)] = NO_ITEM
        return rows

    def _shown(self, where: Mask | None) -> Mask | None:
        """(N,) what a filter leaves of the items that are available; None for all. The index knows those by itself."""
        if where is None or self.available is None:
            return self.available if where is None else where
        return where & self.available

    def scored(self, rows: Rows, histories: Histories) -> Candidates:
        """Any items (B, K) scored by every source and ranked by their fusion."""
        return self._ranked(self._unranked(rows, histories))

    def _ranked(self, unranked: Candidates) -> Candidates:
        ranked = unranked.ranked_by(self.fusion.score(unranked))
        return ranked if self.network is None else self.network.reordered(ranked, self.fusion)

    def weighted_sums(self, histories: Histories, item_rows: Rows) -> Scores:
        """(B, K) float32 of the same items (K,) for every history, by the fusion without its network."""
        rows = np.broadcast_to(item_rows, (len(histories), len(item_rows)))
        return self.fusion.score(self._unranked(rows, histories))

    def _unranked(self, rows: Rows, histories: Histories) -> Candidates:
        users = self.towers.user_vectors(histories, self.item_vectors)
        recent = self.transitions.history_weights(histories)
        following = self.transitions.following(recent)
        return self._sourced(rows, histories, users=users, recent=recent, following=following)

    def _sourced(
        self, rows: Rows, histories: Histories, *, users: Scores, recent: sp.csr_matrix, following: sp.csr_matrix
    ) -> Candidates:
        """All sources' scores, from user vectors (B, ΣD), weights of recent items and scores of transitions (B, N)."""
        safe = np.maximum(rows, 0)
        profile = _unit_rows(recent @ self.text)
        sources = {
            **self.towers.scores(users, self.item_vectors, safe),
            TRANSITIONS: _gathered(following, safe),
            TEXT: _products(profile, self.text, safe),
            LAST_TEXT: _products(self._last_text(histories), self.text, safe),
            LIKENESS: Likeness(self.text, self.words).to_recent(recent, safe),
            **self.trend.columns(safe, histories.asked_at),
        }
        if self.config.short_history:
            sources = with_short(sources, histories.lengths <= self.config.short_history)
        if self.config.cold_targets:
            sources = with_cold(sources, self.trend.untaken(safe), self.trend)
        return Candidates(rows, np.zeros(rows.shape, dtype=np.float32), sources)

    def _last_text(self, histories: Histories) -> Scores:
        """(B, E) text vector of each history's last item, 0 without one."""
        last = histories.last(1)[:, 0]
        return np.asarray(self.text[np.maximum(last, 0)] * (last != NO_ITEM)[:, None], dtype=np.float32)

    def _popular(
        self, candidates: Candidates, empty: np.ndarray, known: list[Rows] | None, where: Mask | None
    ) -> Candidates:
        """The same candidates with the lists of empty histories replaced by recent popular items, known ones left out.

        Whoever has taken nothing may have disliked something.
        """
        shown, taken = self._shown(where), self.recent_popularity
        taken = taken if shown is None else np.where(shown, taken, np.float32(-np.inf))
        places = np.flatnonzero(empty).tolist()
        most = candidates.depth + (max(len(known[place]) for place in places) if known else 0)
        popular = best_of_dense(taken[None, :], most, name=POPULARITY)
        rows, score = candidates.item_rows.copy(), candidates.score.copy()
        rows[empty], score[empty] = NO_ITEM, -np.inf
        for place in places:
            kept = np.flatnonzero(~np.isin(popular.item_rows[0], known[place] if known else []))[: candidates.depth]
            rows[place, : len(kept)], score[place, : len(kept)] = popular.item_rows[0, kept], popular.score[0, kept]
        sources = {name: np.where(empty[:, None], np.float32(0), scores) for name, scores in candidates.sources.items()}
        sources[POPULARITY] = np.where(empty[:, None] & (rows != NO_ITEM), score, np.float32(0))
        return Candidates(rows, score, sources)


def some_queries(retriever: Retriever, histories: Histories, most: int) -> Scores:
    """(n, ΣD) float32: what a sample of users, `most` at most, would search by, each after their history."""
    some = np.flatnonzero(histories.lengths > 0)
    chosen = np.random.default_rng(SAMPLE_SEED).choice(some, min(len(some), most), replace=False)
    users = retriever.towers.user_vectors(histories.take(chosen), retriever.item_vectors)
    return retriever.towers.weighted(users)


def transforms(kinds: Iterable[str], trend: Trend) -> dict[str, Transform]:
    """How the scores of towers of these kinds, and of all other sources, enter the fusion."""
    raw = dict.fromkeys((*map(str, kinds), TEXT, LAST_TEXT, *trend.names), Transform.RAW)
    return {**raw, TRANSITIONS: Transform.LOG, LIKENESS: Transform.LOG}


def _batches(histories: Histories) -> Iterator[Histories]:
    if 0 < len(histories) <= USERS_AT_ONCE:
        yield histories
        return
    for start in range(0, len(histories), USERS_AT_ONCE):
        yield histories.take(np.arange(start, min(start + USERS_AT_ONCE, len(histories))))


def union(first: Rows, second: Rows) -> Rows:
    """(B, K1), (B, K2) → (B, K) distinct rows in rising order, then NO_ITEM; K is the longest union."""
    # As unsigned numbers NO_ITEM is the largest, so that it sorts last.
    both = np.sort(np.concatenate([first, second], axis=1).view(np.uint64), axis=1).view(np.int64)
    both[:, 1:][both[:, 1:] == both[:, :-1]] = NO_ITEM
    both = np.sort(both.view(np.uint64), axis=1).view(np.int64)
    longest = max(int((both != NO_ITEM).sum(axis=1).max(initial=0)), 1)
    return both[:, :longest]


def best_of_sparse(
    scores: sp.csr_matrix, depth: int, *, exclude: list[Rows] | None, allowed: Mask | None = None
) -> Rows:
    """(B, depth) rows of the largest positive scores of each sparse row, without what must not be shown, unordered."""
    best = np.full((scores.shape[0], depth), NO_ITEM, dtype=np.int64)
    for place in range(scores.shape[0]):
        start, end = scores.indptr[place], scores.indptr[place + 1]
        rows, values = scores.indices[start:end], scores.data[start:end]
        if allowed is not None:
            rows, values = rows[allowed[rows]], values[allowed[rows]]
        if exclude is not None and len(exclude[place]):
            fresh = ~np.isin(rows, exclude[place])
            rows, values = rows[fresh], values[fresh]
        if len(rows) > depth:
            rows = rows[np.argpartition(-values, depth)[:depth]]
        best[place, : len(rows)] = rows
    return best


def best_of_dense(scores: Scores, depth: int, *, name: str) -> Candidates:
    """The best `depth` items of (B, N) scores, ties by lower row; -inf marks what must not be shown."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    best = np.take_along_axis(scores, order, 1)
    rows = np.where(np.isfinite(best), order, NO_ITEM).astype(np.int64)
    return Candidates(rows, best, {name: best})


def concatenated(parts: list[Candidates], depth: int) -> Candidates:
    """Candidates of several batches of users as one of shape (B, `depth`); a source that a batch lacks is 0 there."""
    if len(parts) == 1 and parts[0].depth == depth:
        return parts[0]
    starts = np.cumsum([0, *map(len, parts)])
    shape = (int(starts[-1]), depth)
    joined = Candidates(np.full(shape, NO_ITEM, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32))
    sources: dict[str, Scores] = {}
    for part, start in zip(parts, starts, strict=False):
        place = np.s_[start : start + len(part), : part.depth]
        joined.item_rows[place], joined.score[place] = part.item_rows, part.score
        for name, scores in part.sources.items():
            sources.setdefault(name, np.zeros(shape, dtype=np.float32))[place] = scores
    return Candidates(joined.item_rows, joined.score, sources)


def _products(users: Scores, vectors: Scores, rows: Rows) -> Scores:
    """(B, K) inner products of (B, D) users with the vectors at (B, K) rows."""
    out = np.empty(rows.shape, dtype=np.float32)
    # A user at a time, so that the gathered vectors stay in the cache.
    for place, user in enumerate(users):
        np.matmul(vectors[rows[place]], user, out=out[place])
    return out


def _gathered(scores: sp.csr_matrix, rows: Rows) -> Scores:
    """(B, K) entries of a sparse (B, N) matrix."""
    out = np.zeros(rows.shape, dtype=np.float32)
    line = np.zeros(scores.shape[1], dtype=np.float32)
    for place in range(len(rows)):
        start, end = scores.indptr[place], scores.indptr[place + 1]
        columns = scores.indices[start:end]
        line[columns] = scores.data[start:end]
        out[place] = line[rows[place]]
        line[columns] = 0
    return out


def _unit_rows(vectors: Scores) -> Scores:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), dtype=np.float32)
