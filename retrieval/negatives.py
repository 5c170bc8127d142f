"""Which items a training position is held against where the catalog is too large for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from data.schema import NO_ITEM, Histories, Rows, Scores
from retrieval.loss import sampled_softmax_loss

SCORES_AT_ONCE = 32_000_000
"""Scores held in memory at a time while mining, 128 MB of float32."""


class MiningConfig(BaseModel):
    """Which of the retriever's own top places are hard negatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_rank: int = Field(10, ge=0, description="best-scored items passed over: some of them would be taken, too")
    last_rank: int = Field(200, ge=1, description="places beyond this one are not hard")
    per_position: int = Field(8, ge=1, description="negatives drawn from between these ranks for each position")
    duplicate_cosine: float = Field(
        0.95, gt=0, le=1.0, description="items whose text is at least this close to the target's are spared"
    )

    @model_validator(mode="after")
    def _ranks_in_order(self) -> "MiningConfig":
        if self.first_rank >= self.last_rank:
            raise ValueError(f"first_rank is {self.first_rank} and last_rank {self.last_rank}: it must be the smaller")
        return self


@dataclass(frozen=True)
class Negatives:
    """The columns of one batch: every item drawn, taken or mined, once, and what part each plays for each position.

    Attributes:
        rows: (C,) int64 distinct item rows; the caller scores all B positions against them.
        log_expected: (C,) float32, log(expected count / times drawn); +inf where an item was not drawn.
        target_place: (B,) int64, the column of each position's own item.
        mined_place: (B, M) int64, the columns of the items mined for it, NO_ITEM where there are fewer.
    """

    rows: Rows
    log_expected: Scores
    target_place: Rows
    mined_place: Rows

    @property
    def accidental(self) -> npt.NDArray[np.bool_]:
        """(B, C): true where a column is the position's own item or mined for it, hence summed already."""
        positions = np.arange(len(self.target_place))
        hit = np.zeros((len(positions), len(self.rows)), dtype=bool)
        hit[positions, self.target_place] = True
        users, places = np.nonzero(self.mined_place != NO_ITEM)
        hit[users, self.mined_place[users, places]] = True
        return hit

    def loss(self, logits: Tensor) -> Tensor:
        """The mean sampled-softmax loss of logits (B, C) of all positions with all columns."""
        at = logits.device
        positive = logits.gather(1, torch.from_numpy(self.target_place[:, None]).to(at))[:, 0]
        places = torch.from_numpy(self.mined_place).to(at)
        mined = logits.gather(1, places.clamp(min=0)).masked_fill(places == NO_ITEM, float("-inf"))
        return sampled_softmax_loss(
            positive,
            logits,
            log_expected=torch.from_numpy(self.log_expected).to(at),
            accidental=torch.from_numpy(self.accidental).to(at),
            mined=mined,
        )


class NegativeSampler:
    """Draws items for a sampled softmax, popular ones more often, and knows how many of each to expect.

    The targets of a batch are a second sample, drawn with a probability ∝ how often an item is a target. With
    `in_batch` they serve as negatives of each other. An item's expected count is then that of both samples
    together, by which a draw of either is divided (the balance heuristic, Veach & Guibas 1995): the sum over
    the catalog stays unbiased. A position's own target is no draw, so B - 1 others are.

    Args:
        counts: (N,) interactions of each item; those with none are never drawn.
        size: items drawn for each batch, with replacement.
        power: the probability of a draw is ∝ count ** power; 0 draws evenly, 1 as the data does.
        target_counts: (N,) how many training positions have the item as target; given, batches share targets.
    """

    def __init__(self, counts: Rows, *, size: int, power: float = 0.75, target_counts: Rows | None = None) -> None:
        self.size = size
        share = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** power, 0.0)
        self.probability = share / share.sum()  # (N,)
        self._cumulated = np.cumsum(self.probability)
        # Positions are drawn without replacement: of B - 1 others, (B - 1) * count / (all - 1) have this target.
        self._others = None if target_counts is None else target_counts / max(int(target_counts.sum()) - 1, 1)

    def draw(self, targets: Rows, rng: np.random.Generator, *, mined: Rows | None = None) -> Negatives:
        """The columns of a batch.

        Args:
            targets: (B,) item rows that the positions of the batch lead to.
            mined: (B, M) item rows mined for each position, NO_ITEM where there are fewer; one that is the
                target itself is dropped.
        """
        drawn = np.searchsorted(self._cumulated, rng.random(self.size) * self._cumulated[-1], side="right")
        sample = drawn if self._others is None else np.concatenate([drawn, targets])
        wanted = np.full((len(targets), 0), NO_ITEM) if mined is None else _distinct_but(targets, mined)
        rows, place = np.unique(np.concatenate([sample, targets, wanted.ravel()]), return_inverse=True)
        times = np.bincount(place[: len(sample)], minlength=len(rows))
        log_expected = np.full(len(rows), np.inf)
        seen = times > 0
        log_expected[seen] = np.log(self.expected(rows[seen], batch=len(targets)) / times[seen])
        absent = int(rows[0] == NO_ITEM)  # NO_ITEM sorts first, and is no column
        places = place[len(sample) :] - absent
        return Negatives(
            rows=rows[absent:].astype(np.int64),
            log_expected=log_expected[absent:].astype(np.float32),
            target_place=places[: len(targets)],
            mined_place=places[len(targets) :].reshape(wanted.shape),
        )

    def expected(self, rows: Rows, *, batch: int) -> npt.NDArray[np.float64]:
        """(n,) how many times each item is expected among all negatives of one position in a batch of this size."""
        others = 0.0 if self._others is None else (batch - 1) * self._others[rows]
        return np.asarray(self.size * self.probability[rows] + others, dtype=np.float64)


@dataclass(frozen=True)
class Guard:
    """What must not be a negative of a position: what its user took, and what reads like its target.

    Attributes:
        targets: (P,) item row that each position leads to.
        positives: P lists of all items that the user of each position is known to have taken.
        text: (N, E) text vectors of length 1, or 0.
        same_text: (N,) equal numbers where the texts are equal: duplicates whatever their vectors.
    """

    targets: Rows
    positives: Histories
    text: Scores
    same_text: Rows

    @classmethod
    def of(cls, targets: Rows, positives: Histories, *, text: Scores, texts: Sequence[str]) -> "Guard":
        """See the attributes; `texts` are the N texts themselves."""
        return cls(targets, positives, text, np.unique(np.asarray(texts), return_inverse=True)[1])

    def take(self, positions: Rows) -> "Guard":
        """The same for some of the positions."""
        return Guard(self.targets[positions], self.positives.take(positions), self.text, self.same_text)

    def taken(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """(P, K) true where the item is the target, or one that the user took."""
        key = rows + np.arange(len(rows))[:, None] * len(self.text)
        known = self.positives.item_rows + self.positives.list_of_row * len(self.text)
        return np.asarray(np.isin(key, known) | (rows == self.targets[:, None]), dtype=bool)

    def resembling(self, rows: Rows, *, cosine: float) -> npt.NDArray[np.bool_]:
        """(P, K) true where the item's text is equal to that of the target, or at least so close to it."""
        close = np.einsum("bke,be->bk", self.text[rows], self.text[self.targets]) >= cosine
        return np.asarray(close | (self.same_text[rows] == self.same_text[self.targets][:, None]))


def mine_hard_negatives(
    user_vectors: Scores, item_vectors: Scores, guard: Guard, *, config: MiningConfig, rng: np.random.Generator
) -> Rows:
    """(P, M) item rows that the retriever ranks high and the user never took, NO_ITEM where there are fewer.

    Exact, at the cost of P × N inner products; where an index is at hand, give what it finds to
    `choose_hard_negatives`.

    Args:
        user_vectors, item_vectors: (P, D) and (N, D), compared by inner product.
        guard: of the same P positions.
    """
    n_items = len(item_vectors)
    at_once = max(1, SCORES_AT_ONCE // max(n_items, config.last_rank * guard.text.shape[1]))
    parts = [np.zeros((0, config.per_position), dtype=np.int64)]
    for start in range(0, len(user_vectors), at_once):
        chunk = np.arange(start, min(start + at_once, len(user_vectors)))
        part = guard.take(chunk)
        scores = torch.from_numpy(user_vectors[chunk] @ item_vectors.T)
        depth = min(config.last_rank + int(part.positives.lengths.max()) + 1, n_items)
        parts.append(choose_hard_negatives(scores.topk(depth, dim=1).indices.numpy(), part, config=config, rng=rng))
    return np.concatenate(parts)


def choose_hard_negatives(ranked: Rows, guard: Guard, *, config: MiningConfig, rng: np.random.Generator) -> Rows:
    """(P, M) item rows drawn evenly from between the configured ranks, NO_ITEM where there are fewer.

    Ranks are counted among the items that the user did not take. Those that read like the target are then
    dropped, and lower ranks do not move up: in a catalog of near-duplicates a list can be short.

    Args:
        ranked: (P, K) distinct item rows, best first, NO_ITEM where a list ends early.
    """
    candidate = (ranked != NO_ITEM) & ~guard.taken(ranked)
    rank = np.cumsum(candidate, axis=1)  # of a candidate: from 1
    candidate &= (rank > config.first_rank) & (rank <= config.last_rank)
    # Only the window is compared by text: at most last_rank places, however long the lists are.
    first = np.argsort(~candidate, axis=1, kind="stable")[:, : config.last_rank]
    rows, candidate = np.take_along_axis(ranked, first, axis=1), np.take_along_axis(candidate, first, axis=1)
    candidate &= ~guard.resembling(rows, cosine=config.duplicate_cosine)
    # Random keys put the candidates in random order, and all others behind them.
    order = np.argsort(np.where(candidate, rng.random(candidate.shape), 2.0), axis=1)[:, : config.per_position]
    kept = np.take_along_axis(candidate, order, axis=1)
    chosen = np.full((len(ranked), config.per_position), NO_ITEM, dtype=np.int64)
    chosen[:, : order.shape[1]] = np.where(kept, np.take_along_axis(rows, order, axis=1), NO_ITEM)
    return chosen


def _distinct_but(targets: Rows, mined: Rows) -> Rows:
    """Mined rows (B, M) with the position's own target, and what stands there twice, put to NO_ITEM."""
    ordered = np.sort(mined, axis=1)
    twice = np.zeros(ordered.shape, dtype=bool)
    twice[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(twice | (ordered == targets[:, None]), NO_ITEM, ordered)
