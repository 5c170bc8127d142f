"""Which items a training position is held against where the catalog is too large for all of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.schema import NO_ITEM, Rows, Scores
from retrieval.loss import sampled_softmax_loss


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

    def loss(self, logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
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
            label_smoothing=label_smoothing,
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


def _distinct_but(targets: Rows, mined: Rows) -> Rows:
    """Mined rows (B, M) with the position's own target, and what stands there twice, put to NO_ITEM."""
    ordered = np.sort(mined, axis=1)
    twice = np.zeros(ordered.shape, dtype=bool)
    twice[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(twice | (ordered == targets[:, None]), NO_ITEM, ordered)
