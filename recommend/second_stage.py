"""The reranker behind the retriever: what it may read, what its scores change, and what happens when it fails."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from data.schema import Candidates, Histories, Rows, Scores
from fusion.head import above_the_rest
from fusion.linear import LinearFusion
from recommend.ledger import Allowance, Spent
from recommend.microbatch import Crowded
from rerank.base import Reranker, RerankRequest, RerankResult
from rerank.budget import Cap, Cut
from rerank.fit import request_of, retrieval_column
from rerank.fusion import RERANKER, RETRIEVAL
from rerank.gate import Gate
from rerank.prompt import PromptConfig

CLOSED = RerankRequest((), ())
"""What is asked for a user whom the gate leaves out: nothing."""
GATED = (Cut.GATED, Cap.NONE)
USERS_AT_ONCE = 64
"""Users whose candidates are read in one call."""
BYTES_A_TOKEN, AROUND_A_TEXT = 2, 16
"""By which tokens of the day are reserved: a text has fewer tokens than half of its bytes, and some stand around it."""
NOT_FINITE = "the reranker's scores are not finite"
_LOG = logging.getLogger(__name__)


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
        degraded: for each user why the reranker gave no answer although it should have; empty where it did.
        retrieval_ms, rerank_ms: of all users together, where they were measured.
    """

    retrieved: Candidates
    reranked: Candidates
    read: Rows
    prompt_tokens: Rows
    cached_tokens: Rows
    cuts: tuple[tuple[Cut, Cap], ...]
    tied: npt.NDArray[np.bool_]
    degraded: tuple[str, ...]
    retrieval_ms: float = 0.0
    rerank_ms: float = 0.0

    @property
    def depth(self) -> int:
        """The most candidates of a list that were read."""
        return int(self.read.max(initial=0))

    @property
    def spent(self) -> Spent:
        """For the ledger."""
        return Spent(
            requests=len(self.retrieved),
            reranked=int((self.read > 0).sum()),
            candidates=int(self.read.sum()),
            prompt_tokens=int(self.prompt_tokens.sum()),
            cached_tokens=int(self.cached_tokens.sum()),
            retrieval_ms=self.retrieval_ms,
            rerank_ms=self.rerank_ms,
            tied=int(self.tied.sum()),
        )


@dataclass(frozen=True)
class SecondStage:
    """A reranker and the fusion of its score with retrieval's.

    Attributes:
        texts: text of each item, by row.
        gate: says whom to rerank where not everybody is.
        allowance: of tokens for the day.
        prompt: how much the reranker reads; None: not known, and it is asked with everything.
    """

    reranker: Reranker
    fusion: LinearFusion
    texts: Sequence[str]
    gate: Gate | None = None
    allowance: Allowance = field(default_factory=lambda: Allowance(None))
    prompt: PromptConfig | None = None

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
        tolerant: bool = False,
    ) -> Ranked:
        """The first `depth` places reordered as far as the budget lets them be read, the rest left below them.

        Args:
            share: of users like those of validation who are reranked, the most promising by the gate.
            limits: cap → tokens that each request may cost.
            max_ms: milliseconds that each request may take.
            tolerant: whoever the reranker fails for keeps retrieval order, with the reason, and nobody else does.

        Raises:
            ValueError: when the reranker's scores are not finite, unless tolerant.
            Exception: what the reranker raised, unless tolerant.
        """
        head = retrieved.head(depth)
        opened = np.ones(len(head), dtype=np.bool_)
        if self.gate is not None:
            opened = self.gate.opens(head, histories.lengths, share=share)
        shape = head.item_rows.shape
        scores, was_read = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.bool_)
        results: list[RerankResult] = []
        reasons: list[str] = []
        for start in range(0, len(head), USERS_AT_ONCE):
            places = range(start, min(start + USERS_AT_ONCE, len(head)))
            asked = [
                request_of(self.texts, head, histories, place, prompt=self.prompt) if opened[place] else CLOSED
                for place in places
            ]
            asked = [replace(one, limits=limits or {}, max_ms=max_ms) for one in asked]
            if tolerant:
                found, why = self._answered(asked, quiet=any(reasons))
            else:
                found, why = self.within_the_day(asked), [""] * len(asked)
            gated = [cut if opened[place] else GATED for cut, place in zip(found.cuts, places, strict=True)]
            results.append(replace(found, cuts=gated))
            reasons += why
            for place, values in zip(places, found.scores, strict=True):
                if not np.isfinite(values).all():
                    raise ValueError(NOT_FINITE)
                there = np.flatnonzero(head.present[place])[: len(values)]
                scores[place, there], was_read[place, there] = values, True
        return self._ranked(retrieved, scores, was_read, results, reasons)

    def _answered(self, asked: Sequence[RerankRequest], *, quiet: bool) -> tuple[RerankResult, list[str]]:
        """What was found, with nothing where the reranker failed, and why it did; who spoils a call is asked alone."""
        try:
            return self._sense_in(self.within_the_day(asked), quiet=quiet)
        except Crowded:  # load, and no failure: its caller has a word for that
            raise
        except Exception as error:  # whatever it is, an answer is worth more than its last touch
            if not quiet:
                _LOG.exception("the reranker failed")
            if len(asked) == 1:
                return _nothing(), [reason_of(error)]
        parts = [self._answered([one], quiet=True) for one in asked]
        return joined([found for found, _ in parts]), [one for _, why in parts for one in why]

    def _sense_in(self, found: RerankResult, *, quiet: bool) -> tuple[RerankResult, list[str]]:
        """The same without scores that are not finite, whose tokens were spent all the same."""
        reasons = ["" if np.isfinite(values).all() else reason_of(ValueError(NOT_FINITE)) for values in found.scores]
        if any(reasons) and not quiet:
            _LOG.error("the reranker failed: %s", NOT_FINITE)
        scores = [values[:0] if why else values for values, why in zip(found.scores, reasons, strict=True)]
        return replace(found, scores=scores), reasons

    def within_the_day(self, asked: Sequence[RerankRequest]) -> RerankResult:
        """Scores, for no more tokens than the day has left."""
        started = time.perf_counter()
        grant = self.allowance.reserve(sum(_most_tokens(one, self.prompt) for one in asked))
        if grant is not None:
            # An equal share for each of them, so that together they cannot exceed it.
            day = {Cap.DAY: grant.tokens // max(1, sum(bool(one.candidates) for one in asked))}
            waited = (time.perf_counter() - started) * 1000
            asked = [replace(one.later(waited), limits={**one.limits, **day}) for one in asked]
        used = 0
        try:
            found = self.reranker.score(asked)
            used = sum(found.prompt_tokens) - sum(found.cached_tokens)
        finally:
            self.allowance.settle(grant, used)
        return found

    def _ranked(
        self,
        retrieved: Candidates,
        scores: Scores,
        was_read: npt.NDArray[np.bool_],
        results: Sequence[RerankResult],
        reasons: Sequence[str],
    ) -> Ranked:
        width = retrieved.depth - scores.shape[1]
        read = np.pad(was_read, ((0, 0), (0, width)))
        column = np.pad(scores, ((0, 0), (0, width)))
        both = retrieved.with_source(RETRIEVAL, retrieval_column(retrieved)).with_source(RERANKER, column)
        final = above_the_rest(self.fusion.score(both), retrieved.score, read)
        highest = np.where(read, column, -np.inf).max(axis=1, initial=-np.inf)
        lowest = np.where(read, column, np.inf).min(axis=1, initial=np.inf)
        found = joined(results)
        return Ranked(
            retrieved=retrieved,
            reranked=both.ranked_by(final),
            read=read.sum(axis=1),
            prompt_tokens=np.array(found.prompt_tokens, dtype=np.int64),
            cached_tokens=np.array(found.cached_tokens, dtype=np.int64),
            cuts=tuple(found.cuts),
            tied=(read.sum(axis=1) > 1) & (highest == lowest),
            degraded=tuple(reasons),
        )


def unread(retrieved: Candidates, *, degraded: str = "") -> Ranked:
    """Retrieval order, where the reranker is not asked or has failed."""
    none = np.zeros(len(retrieved), dtype=np.int64)
    cuts = ((Cut.NONE, Cap.NONE),) * len(retrieved)
    return Ranked(retrieved, retrieved, none, none, none, cuts, none.astype(np.bool_), (degraded,) * len(retrieved))


def reason_of(error: Exception) -> str:
    """Its type and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def joined(parts: Sequence[RerankResult]) -> RerankResult:
    """The answers to all of their requests, in order."""
    return RerankResult(
        scores=[one for part in parts for one in part.scores],
        prompt_tokens=[one for part in parts for one in part.prompt_tokens],
        cached_tokens=[one for part in parts for one in part.cached_tokens],
        cut_candidates=[one for part in parts for one in part.cut_candidates],
        cuts=[one for part in parts for one in part.cuts],
    )


def _nothing() -> RerankResult:
    """For one request of which nothing was read."""
    return RerankResult([np.zeros(0, dtype=np.float32)], [0], [0], [0], [(Cut.NONE, Cap.NONE)])


def _most_tokens(request: RerankRequest, prompt: PromptConfig | None) -> int:
    """More tokens than its prompt has; nothing where nothing is asked."""
    if not request.candidates:
        return 0
    texts = (request.about, *request.history, *request.candidates)
    longest = sys.maxsize if prompt is None else max(prompt.max_item_tokens, prompt.max_candidate_tokens)
    return sum(AROUND_A_TEXT + min(longest, len(text.encode()) // BYTES_A_TOKEN) for text in texts)
