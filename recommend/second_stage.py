"""The reranker behind the retriever: what it may read, what its scores change, and what happens when it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from data.schema import Candidates, Histories, Rows, Scores
from fusion.linear import LinearFusion
from recommend.ledger import Allowance
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.budget import Cap, Cut
from rerank.fit import request_of, retrieval_column
from rerank.fusion import RERANKER, RETRIEVAL
from rerank.gate import Gate

CLOSED = RerankRequest((), ())
"""What is asked for a user whom the gate leaves out: nothing."""
GATED = (Cut.GATED, Cap.NONE)
USERS_AT_ONCE = 64
"""Users whose candidates are read in one call."""


@dataclass(frozen=True)
class Ranked:
    """Both stages for B users.

    Attributes:
        retrieved: (B, K) after the first stage.
        reranked: the same items after the second; equal to `retrieved` without one.
        read: (B,) how many candidates of each list the reranker read, from the top.
        prompt_tokens: (B,) tokens of what it read.
        cached_tokens: (B,) those among them that it remembered.
        cuts: for each user what the budget left out, and because of which cap.
        tied: (B,) whether all scores were alike, so that retrieval order stayed.
        degraded: why the reranker could not be asked although it should have been; empty where all went well.
    """

    retrieved: Candidates
    reranked: Candidates
    read: Rows
    prompt_tokens: Rows
    cached_tokens: Rows
    cuts: tuple[tuple[Cut, Cap], ...]
    tied: npt.NDArray[np.bool_]
    degraded: str = ""

    @property
    def depth(self) -> int:
        """The most candidates of a list that were read."""
        return int(self.read.max(initial=0))


@dataclass(frozen=True)
class SecondStage:
    """A reranker and the fusion of its score with retrieval's.

    Attributes:
        texts: text of each item, by row.
        gate: says whom to rerank where not everybody is.
        allowance: of tokens for the day.
    """

    reranker: Reranker
    fusion: LinearFusion
    texts: Sequence[str]
    gate: Gate | None = None
    allowance: Allowance = field(default_factory=lambda: Allowance(None))

    @property
    def helps(self) -> bool:
        """Whether the fusion, fitted on validation, gives the reranker any weight."""
        return self.fusion.weights[RERANKER] > 0

    def rank(
        self,
        retrieved: Candidates,
        histories: Histories,
        *,
        depth: int,
        share: float = 1.0,
        limits: Mapping[Cap, int] | None = None,
        max_ms: float | None = None,
    ) -> Ranked:
        """The first `depth` places reordered as far as the budget lets them be read, the rest left below them.

        Args:
            share: of users like those of validation who are reranked, the most promising by the gate.
            limits: cap → tokens that each request may cost.
            max_ms: milliseconds that each request may take.

        Raises:
            ValueError: when the reranker's scores are not finite.
        """
        head = retrieved.head(depth)
        opened = np.ones(len(head), dtype=np.bool_)
        if self.gate is not None:
            opened = self.gate.opens(head, histories.lengths, share=share)
        shape = head.item_rows.shape
        scores, was_read = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.bool_)
        results = []
        for start in range(0, len(head), USERS_AT_ONCE):
            places = range(start, min(start + USERS_AT_ONCE, len(head)))
            # An equal share of the day's rest for each of them, so that together they cannot exceed it.
            rest = self.allowance.remaining()
            caps = {**(limits or {}), **({} if rest is None else {Cap.DAY: rest // len(places)})}
            asked = [self._request(head, histories, place, caps, max_ms) for place in places]
            asked = [one if opened[place] else CLOSED for one, place in zip(asked, places, strict=True)]
            found = self.reranker.score(asked)
            self.allowance.spend(sum(found.prompt_tokens) - sum(found.cached_tokens))
            gated = [cut if opened[place] else GATED for cut, place in zip(found.cuts, places, strict=True)]
            results.append(replace(found, cuts=gated))
            for place, values in zip(places, found.scores, strict=True):
                if not np.isfinite(values).all():
                    raise ValueError("the reranker's scores are not finite")
                there = np.flatnonzero(head.present[place])[: len(values)]
                scores[place, there], was_read[place, there] = values, True
        return self._ranked(retrieved, scores, was_read, results)

    def _request(
        self, head: Candidates, histories: Histories, place: int, limits: Mapping[Cap, int], max_ms: float | None
    ) -> RerankRequest:
        asked = request_of(self.texts, head, histories, place)
        return replace(asked, limits=limits, max_ms=max_ms)

    def _ranked(
        self,
        retrieved: Candidates,
        scores: Scores,
        was_read: npt.NDArray[np.bool_],
        results: Sequence[RerankResult],
    ) -> Ranked:
        width = retrieved.depth - scores.shape[1]
        read = np.pad(was_read, ((0, 0), (0, width)))
        column = np.pad(scores, ((0, 0), (0, width)))
        both = retrieved.with_source(RETRIEVAL, retrieval_column(retrieved)).with_source(RERANKER, column)
        final = above_the_rest(self.fusion.score(both), retrieved.score, read)
        highest = np.where(read, column, -np.inf).max(axis=1, initial=-np.inf)
        lowest = np.where(read, column, np.inf).min(axis=1, initial=np.inf)
        return Ranked(
            retrieved=retrieved,
            reranked=both.ranked_by(final),
            read=read.sum(axis=1),
            prompt_tokens=np.array([one for part in results for one in part.prompt_tokens], dtype=np.int64),
            cached_tokens=np.array([one for part in results for one in part.cached_tokens], dtype=np.int64),
            cuts=tuple(one for part in results for one in part.cuts),
            tied=(read.sum(axis=1) > 1) & (highest == lowest),
        )


def unread(retrieved: Candidates, *, degraded: str = "") -> Ranked:
    """Retrieval order, where the reranker is not asked or has failed."""
    none = np.zeros(len(retrieved), dtype=np.int64)
    cuts = ((Cut.NONE, Cap.NONE),) * len(retrieved)
    return Ranked(retrieved, retrieved, none, none, none, cuts, none.astype(np.bool_), degraded)


def above_the_rest(fused: Scores, retrieval: Scores, read: npt.NDArray[np.bool_]) -> Scores:
    """(B, K) fused scores where an item was read; elsewhere those of retrieval, shifted to stay below them.

    Places that were not read keep their order, by falling scores or by equal ones.
    """
    lowest = np.where(read, fused, np.inf).min(axis=1, initial=np.inf)
    top = np.where(read | ~np.isfinite(retrieval), -np.inf, retrieval).max(axis=1, initial=-np.inf)
    shifts = np.isfinite(lowest) & np.isfinite(top)
    shift = np.where(shifts, lowest - np.where(shifts, top, 0), 0)
    # Rounding may lift the first of the rest over the last that was read, and who sorts by score would swap them.
    below = np.minimum(retrieval + shift[:, None], np.nextafter(lowest, np.float32(-np.inf))[:, None])
    return np.where(read, fused, below).astype(np.float32)
