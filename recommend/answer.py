"""What a recommendation says: items with their places and reasons, what they rest on, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from recommend.ledger import Spent


class Basis(StrEnum):
    """What an answer rests on."""

    HISTORY = "history"
    QUERY = "query"
    POPULAR = "recent popular items"


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One place of an answer.

    Attributes:
        retrieval_rank: place after the first stage, from 1.
        rerank_rank: place by the reranker's own score among those it read; None where it did not read it.
        retrieval_score: fused score of the first stage.
        rerank_score: the reranker's score; None where it did not read it.
        because: ids of the history items that contributed most to retrieval, the strongest first.
        shares: of each of them, in all by which history items raised the score.
        sources: the share of each source in what lifts the item above the list's end; empty without reasons.
    """

    item_id: str
    title: str
    score: float
    retrieval_rank: int
    rerank_rank: int | None
    retrieval_score: float
    rerank_score: float | None
    because: tuple[str, ...]
    shares: tuple[float, ...] = ()
    sources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost: items found and read, tokens of the prompt, those remembered, milliseconds a stage.

    Attributes:
        tied: whether the reranker gave all that it read one score, so that retrieval order stayed.
    """

    candidates: int
    reranked: int
    prompt_tokens: int
    cached_tokens: int
    retrieval_ms: float
    rerank_ms: float
    explain_ms: float
    tied: bool = False

    @property
    def spent(self) -> Spent:
        """For the ledger; finding reasons is part of the first stage."""
        return Spent(
            requests=1,
            reranked=int(self.reranked > 0),
            candidates=self.reranked,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            retrieval_ms=self.retrieval_ms + self.explain_ms,
            rerank_ms=self.rerank_ms,
            tied=int(self.tied),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """Recommendations for one user.

    Attributes:
        not_reranked: why the reranker was not asked; empty where it was.
        left_out: what the budget cut away, and by which cap; empty where everything fitted.
        degraded: how the reranker failed, so that retrieval order stands; empty where it did not.
        gated: whether the gate expected no gain, so that nothing was read.
        gave_way: what the load of other requests has cost this one; empty where nothing.
        no_items: why there are none; empty where there are some.
    """

    basis: Basis
    items: tuple[RecommendedItem, ...]
    cost: Cost
    release_fit: str
    not_reranked: str
    left_out: str = ""
    degraded: str = ""
    gave_way: str = ""
    gated: bool = False
    no_items: str = ""
