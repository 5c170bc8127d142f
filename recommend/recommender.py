"""Both stages behind one call: candidates from the whole catalog, the top few reranked, fused, explained."""

import copy
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.schema import NO_ITEM, Candidates, Catalog, Histories, Mask, Rows, Scores
from recommend.answer import Answer, Basis, Cost, RecommendedItem
from recommend.gathered import GatheredRetrieval
from recommend.ledger import Allowance, Prices
from recommend.microbatch import Crowded
from recommend.overload import RerankLoad
from recommend.reasons import lifts, reasons
from recommend.release import Stages
from recommend.second_stage import Ranked, SecondStage, reason_of, unread
from rerank.budget import Budget, Cap, Cut
from rerank.fusion import RERANKER
from rerank.packed import PackedReranker
from rerank.precision import Precision, at_precision
from retrieval.retriever import Retriever
from store.errors import BadInput


class RecommendConfig(BaseModel):
    """What a recommendation looks like unless a request says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(10, ge=1, description="items shown")
    candidates: int = Field(100, ge=1, description="items that the first stage hands on, at least k")
    depth: int | None = Field(
        None, ge=0, description="of these, the ones that are reranked; 0 leaves retrieval order; unset: reranker.depth"
    )
    gate_share: float = Field(
        1.0, ge=0, le=1, description="share of users who are reranked, those whom the gate expects to gain most"
    )
    max_tokens_per_day: int | None = Field(
        None, ge=0, description="tokens through the reranker on one day (UTC), by all commands on this run together"
    )
    precision: Precision = Field(Precision.FLOAT32, description="of the reranker's products: float32, bfloat16 or int8")
    prices: Prices = Field(Prices(), description="what tokens and the machine cost")
    exclude_known: bool = Field(
        True,
        description="never recommend what the user already has, or rated below data.min_rating; false where people "
        "take things again, and then both stages are fitted so, too",
    )


class Rerank(StrEnum):
    """When the reranker is asked: where its weight is not 0, in any case, or not at all."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Recommender:
    """Command line, batch and server all recommend through one of these; safe for several threads."""

    def __init__(
        self, stages: Stages, config: RecommendConfig, *, ledger: Path | None = None, load: RerankLoad | None = None
    ) -> None:
        """Makes one from a release.

        Args:
            stages: what is published.
            config: what an answer looks like.
            ledger: folder of the run's ledger, so that all who have it keep `max_tokens_per_day` together; None: this
                one alone does. Whoever asks puts down what answers cost.
            load: grants fewer candidates while the reranker is busy; None: as many as are asked for.

        Raises:
            CorruptArtifact: when the ledger cannot be read.
        """
        self.config = config
        self._take(stages)
        self.second: SecondStage | None = None
        if stages.reranker is not None and stages.fusion is not None:
            allowance = Allowance(config.max_tokens_per_day, folder=ledger)
            reranker = stages.reranker
            if isinstance(reranker, PackedReranker):  # one in a child has chosen for itself
                reranker = at_precision(reranker, config.precision)
            self.second = SecondStage(reranker, stages.fusion, self.texts, stages.gate, allowance, stages.prompt)
        self._load = load
        self._calibrated = False

    def over(self, stages: Stages) -> "Recommender":
        """The same recommender, its reranker as it stands, over a catalog that has changed."""
        other = copy.copy(self)
        other._take(stages)
        if self.second is not None:
            other.second = replace(self.second, texts=other.texts)
        return other

    def _take(self, stages: Stages) -> None:
        self.dataset = stages.dataset
        self.catalog: Catalog = stages.dataset.catalog
        self.users = stages.dataset.users
        self.interactions = stages.dataset.interactions
        self.titles, self.texts = self.catalog.titles, self.catalog.texts
        self.retriever: Retriever = stages.retriever
        self.fit = stages.fit
        self._gathered = GatheredRetrieval(self.retriever)

    def history_of(self, user_id: str) -> Rows:
        """All item rows of a known user, oldest first.

        Raises:
            UnknownId: when the log has no such user.
        """
        return self.interactions[self.users.row(user_id)]

    def about_of(self, user_id: str) -> str:
        """What the users table told of a known user, in words; empty without one.

        Raises:
            UnknownId: when the log has no such user.
        """
        return self.interactions.about_of(self.users.row(user_id))

    def recommend(
        self,
        history: Rows,
        *,
        k: int | None = None,
        depth: int | None = None,
        rerank: Rerank = Rerank.AUTO,
        budget: Budget | None = None,
        query_vector: Scores | None = None,
        about: str = "",
        disliked: Rows | None = None,
        where: Mask | None = None,
        exclude: Rows | None = None,
        exclude_known: bool | None = None,
        explained: bool = True,
    ) -> Answer:
        """The best k items for one history, each with its reasons, and what they cost.

        Args:
            history: (n,) item rows, oldest first; empty: recent popular items, or the query alone.
            k: items wanted; None: as configured, or all of a smaller catalog. Fewer come back only where fewer exist.
            depth: items reranked; None: as configured.
            rerank: `ALWAYS` shows the reranker's places and scores even where they do not count.
            budget: what the answer may cost; what was left out for it stands in the answer.
            query_vector: (E,) text vector of a free-text wish, which then takes the history's place.
            about: what is known of the user, in words, as `about_of` tells it of those in the log.
            disliked: (d,) rows of what the user rated too low to count, left out like the history; None: nothing.
            where: (N,) the items that may be shown; None: all.
            exclude: (m,) rows of items that must not come back.
            exclude_known: whether known and disliked ones must not either; None: as configured.
            explained: whether reasons are looked for, which costs several times what retrieval does.

        Raises:
            BadInput: when k is not positive or larger than the catalog.
        """
        k = self.checked_k(k, unless=self.config.k)
        exclude_known = self.config.exclude_known if exclude_known is None else exclude_known
        histories = Histories.of([history.tolist()], about=[about])
        if disliked is not None and len(disliked):
            histories = replace(histories, disliked=Histories.of([disliked.tolist()]))
        wanted = max(k, self.config.candidates) + (0 if exclude is None else len(exclude))
        asks = rerank is Rerank.ALWAYS or (rerank is not Rerank.NEVER and self.reranker_helps)
        if asks and budget is not None and budget.max_ms is not None:
            with suppress(Exception):  # what fails here fails below once more, where that is told
                self._calibrate()  # it takes longer than a request may, and is no part of it
        started = time.perf_counter()
        if query_vector is not None:
            basis = Basis.QUERY
            retrieved = self.retriever.candidates_for_texts(query_vector[None, :], histories, wanted, where=where)
        else:
            basis = Basis.HISTORY if len(history) else Basis.POPULAR
            retrieved = self._gathered.candidates(histories, wanted, exclude_known=exclude_known, where=where)
        if exclude is not None:
            retrieved = _without(retrieved, exclude, wanted - len(exclude))
        after_retrieval = time.perf_counter()
        use_reranker = basis is Basis.HISTORY and rerank is not Rerank.NEVER
        ranked, gave_way = self._reranked_or_not(
            retrieved,
            histories,
            depth=(self.config.depth if depth is None else depth) if use_reranker else 0,
            always=rerank is Rerank.ALWAYS,
            budget=budget,
            spent_ms=(after_retrieval - started) * 1000,
        )
        after_rerank = time.perf_counter()
        items = self._items(ranked, history, k, explained=explained and basis is Basis.HISTORY)
        cost = Cost(
            candidates=int(retrieved.present.sum()),
            reranked=ranked.depth,
            prompt_tokens=int(ranked.prompt_tokens[0]),
            cached_tokens=int(ranked.cached_tokens[0]),
            retrieval_ms=(after_retrieval - started) * 1000,
            rerank_ms=(after_rerank - after_retrieval) * 1000,
            explain_ms=(time.perf_counter() - after_rerank) * 1000,
            tied=bool(ranked.tied[0]),
        )
        cut, cap = ranked.cuts[0]
        return Answer(
            basis=basis,
            items=items,
            cost=cost,
            release_fit=self.fit,
            not_reranked="" if ranked.depth else gave_way or self._why_not_reranked(basis, rerank, ranked),
            left_out=f"{cut} ({cap})" if cap is not Cap.NONE else "",
            degraded=ranked.degraded[0],
            gave_way=gave_way,
            gated=cut is Cut.GATED,
        )

    def rank(
        self, histories: Histories, *, candidates: int, depth: int | None = None, where: Mask | None = None
    ) -> Ranked:
        """Both stages for many users at once, timed; `where` as in `recommend`.

        Whoever the reranker fails for keeps the order of retrieval, as in `recommend`, and the reason stands beside it.
        """
        started = time.perf_counter()
        retrieved = self.retrieve(histories, candidates, where=where)
        between = time.perf_counter()
        ranked = self._rerank_or_say_why(retrieved, histories, depth=depth)
        return replace(
            ranked, retrieval_ms=(between - started) * 1000, rerank_ms=(time.perf_counter() - between) * 1000
        )

    def retrieve(self, histories: Histories, candidates: int, *, where: Mask | None = None) -> Candidates:
        """The first stage for many users at once; `where` as in `recommend`."""
        return self.retriever.candidates(histories, candidates, exclude_known=self.config.exclude_known, where=where)

    def rerank(
        self,
        retrieved: Candidates,
        histories: Histories,
        *,
        depth: int | None = None,
        always: bool = False,
        budget: Budget | None = None,
        spent_ms: float = 0.0,
        tolerant: bool = False,
    ) -> Ranked:
        """The second stage on given candidates: the first `depth` places reordered, the rest left below them.

        Where the fusion gives the reranker no weight, it is not asked: its answer could change nothing.

        Args:
            always: ask it even then, to measure what it costs or to show its scores.
            budget: caps of each user's request.
            spent_ms: what of the budget's time is behind already.
            tolerant: as in `SecondStage.rank`; a report must not hide what fails.
        """
        wanted = self.config.depth if depth is None else depth
        depth = min(wanted or 0, retrieved.depth)
        if self.second is None or depth == 0 or not (always or self.second.helps):
            return unread(retrieved)
        limits = {} if budget is None or budget.max_tokens is None else {Cap.TOKENS: budget.max_tokens}
        max_ms = None
        if budget is not None and budget.max_ms is not None:
            self._calibrate()
            max_ms = max(0.0, budget.max_ms - spent_ms)
        share = 1.0 if always else self.config.gate_share
        return self.second.rank(
            retrieved, histories, depth=depth, share=share, limits=limits, max_ms=max_ms, tolerant=tolerant
        )

    def _calibrate(self) -> None:
        """Once, for the first request whose time is capped; a server does it before it says that it is ready."""
        if self.second is not None and not self._calibrated:
            self.second.reranker.calibrate()
            self._calibrated = True

    @property
    def reranker_helps(self) -> bool:
        """Whether the fusion, fitted on validation, gives the reranker any weight."""
        return self.second is not None and self.second.helps

    def text_vector(self, vectors: Scores) -> Scores:
        """(n, E) raw text vectors, mapped like the catalog's."""
        return self.retriever.text_space(vectors)

    def item_rows(self, item_ids: Sequence[str]) -> Rows:
        """Rows of public item ids.

        Raises:
            UnknownId: naming all that the catalog lacks.
        """
        return self.catalog.vocabulary.rows(item_ids)

    def title_of(self, item_id: str) -> str:
        """The title of a known item."""
        return self.titles[self.catalog.vocabulary.row(item_id)]

    def checked_k(self, k: int | None, *, unless: int) -> int:
        """A number of items that a list can have: `k`, or where nobody stated it as much of `unless` as there is.

        Raises:
            BadInput: when k is not positive or larger than the catalog.
        """
        available = self.retriever.available
        items = len(self.catalog) if available is None else int(available.sum())
        if k is None:
            k = max(1, min(unless, items))
        if not 1 <= k <= items:
            raise BadInput(f"k is {k:,}, but the catalog has {items:,} items: ask for 1 to that many")
        return k

    def _items(self, ranked: Ranked, history: Rows, k: int, *, explained: bool) -> tuple[RecommendedItem, ...]:
        final, retrieved = ranked.reranked, ranked.retrieved
        rows = final.item_rows[0][final.item_rows[0] != NO_ITEM][:k]
        place_before = {int(row): place for place, row in enumerate(retrieved.item_rows[0])}
        read = _reranker_places(ranked)
        named = reasons(self.retriever, history, rows) if explained else [{}] * len(rows)
        lifted = lifts(self.retriever, retrieved) if explained else {}
        items = []
        for place, row in enumerate(rows.tolist()):
            before = place_before[row]
            reread = read.get(row)
            items.append(
                RecommendedItem(
                    item_id=self.catalog.vocabulary.ids[row],
                    title=self.titles[row],
                    score=float(final.score[0, place]),
                    retrieval_rank=before + 1,
                    rerank_rank=reread[0] if reread else None,
                    retrieval_score=float(retrieved.score[0, before]),
                    rerank_score=reread[1] if reread else None,
                    because=tuple(self.catalog.vocabulary.ids[one] for one in named[place]),
                    shares=tuple(named[place].values()),
                    sources={name: float(share[before]) for name, share in lifted.items()},
                )
            )
        return tuple(items)

    def _reranked_or_not(
        self, retrieved: Candidates, histories: Histories, *, depth: int | None, always: bool, **how: Any
    ) -> tuple[Ranked, str]:
        """As `rerank`, and what load has cost; where it fails, retrieval order with the reason.

        An answer is worth more than its last touch. A turn that did not come in time is load, and no failure.
        """
        wanted = min(depth or 0, retrieved.depth)
        if self._load is None or not wanted or not (always or self.reranker_helps):
            return self._rerank_or_say_why(retrieved, histories, depth=wanted, always=always, **how), ""
        with self._load.reading(wanted) as reading:
            try:
                ranked = self._rerank_or_say_why(retrieved, histories, depth=reading.depth, always=always, **how)
            except Crowded as error:
                return unread(retrieved), f"overload: not reranked, {error}"
            reading.succeeded = ranked.depth > 0
        return ranked, reading.words

    def _rerank_or_say_why(self, retrieved: Candidates, histories: Histories, **how: Any) -> Ranked:
        try:
            return self.rerank(retrieved, histories, tolerant=True, **how)
        except Crowded:
            raise
        except Exception as error:  # whatever else it is, such as a model that cannot be calibrated
            logging.getLogger(__name__).exception("the reranker failed")
            return unread(retrieved, degraded=reason_of(error))

    def _why_not_reranked(self, basis: Basis, rerank: Rerank, ranked: Ranked) -> str:
        if ranked.degraded[0]:
            return f"the reranker failed ({ranked.degraded[0]})"
        if ranked.cuts[0][0] is Cut.PASSED:
            return f"the budget is too small ({ranked.cuts[0][1]})"
        if ranked.cuts[0][0] is Cut.GATED:
            return str(Cut.GATED)
        if self.second is None:
            return "this release has no reranker"
        if basis is not Basis.HISTORY:
            return "a reranker reads histories, and there is none"
        if rerank is Rerank.AUTO and not self.reranker_helps:
            return "the reranker did not help on validation; --rerank always shows its scores"
        return "the reranker was told not to"


def _without(found: Candidates, rows: Rows, depth: int) -> Candidates:
    """One list without the items at `rows`, cut to `depth`."""
    kept = np.flatnonzero(~np.isin(found.item_rows[0], rows))[:depth]
    sources = {name: scores[:, kept] for name, scores in found.sources.items()}
    return Candidates(found.item_rows[:, kept], found.score[:, kept], sources)


def _reranker_places(ranked: Ranked) -> dict[int, tuple[int, float]]:
    """Item row → (place by the reranker's own score, that score), for the items that it read."""
    head = ranked.reranked.head(ranked.depth)
    if not ranked.depth or RERANKER not in head.sources:
        return {}
    scores = head.sources[RERANKER][0]
    order = sorted(np.flatnonzero(head.present[0]).tolist(), key=lambda place: -scores[place])
    return {int(head.item_rows[0, place]): (rank + 1, float(scores[place])) for rank, place in enumerate(order)}
