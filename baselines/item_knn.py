"""Item-to-item cosine over the users who took both, summed over the end of a history."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field

from baselines.base import ScoresAll, decayed_matrix, item_counts, popularity_order, user_item_matrix
from data.schema import Histories, Rows, Scores

BLOCK_ENTRIES = 2**24
"""Entries of one block of the similarity matrix before it is cut to the nearest neighbours."""


class ItemKnnConfig(BaseModel):
    """Neighbours of an item, and how a history is summed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_items: int = Field(10, ge=1, description="most recent items of a history that are summed")
    history_decay: float = Field(0.7, gt=0, le=1, description="weight of the item j steps back: decay ** j")
    shrinkage: float = Field(0.0, ge=0, description="added to the cosine's denominator: rare pairs count less")
    neighbours: int = Field(500, ge=1, description="most similar items kept for each item")


@dataclass(frozen=True)
class ItemKnn(ScoresAll):
    """Cosine of the columns of the binary user-item matrix (Sarwar et al. 2001), with a decayed history.

    Attributes:
        similarity: (N, N) float32, sparse; row i holds the neighbours of item i.
        order: (N,) item rows by popularity, which breaks ties and fills up.
        config: as fitted.
    """

    similarity: sp.csr_matrix
    order: Rows
    config: ItemKnnConfig
    name: ClassVar[str] = "item-knn"

    @classmethod
    def fit(cls, train: Histories, n_items: int, config: ItemKnnConfig) -> Self:
        """Counts pairs block by block, so that memory holds one block and the kept neighbours."""
        taken = user_item_matrix(train, n_items)
        by_item = taken.T.tocsr()
        norms = np.sqrt(np.diff(by_item.indptr).astype(np.float32))
        step = max(1, BLOCK_ENTRIES // max(n_items, 1))
        blocks = [
            _nearest(_cosines(by_item, taken, norms, start, min(start + step, n_items), config), config)
            for start in range(0, n_items, step)
        ]
        return cls(sp.vstack(blocks, format="csr"), popularity_order(item_counts(train, n_items)), config)

    def _score(self, histories: Histories) -> Scores:
        weights = decayed_matrix(
            histories,
            len(self.order),
            window=self.config.history_items,
            decay=self.config.history_decay,
        )
        return np.asarray((weights @ self.similarity).toarray())


def _cosines(
    by_item: sp.csr_matrix,
    taken: sp.csr_matrix,
    norms: Scores,
    start: int,
    stop: int,
    config: ItemKnnConfig,
) -> sp.csr_matrix:
    """(stop - start, N): the similarities of the items from `start` to `stop`, none with itself."""
    block = (by_item[start:stop] @ taken).tocoo()
    different = block.row + start != block.col
    rows, columns, together = block.row[different], block.col[different], block.data[different]
    values = together / (norms[rows + start] * norms[columns] + np.float32(config.shrinkage))
    return sp.csr_matrix((values, (rows, columns)), shape=block.shape)


def _nearest(block: sp.csr_matrix, config: ItemKnnConfig) -> sp.csr_matrix:
    """Keeps the largest entries of each row, equal ones by lower column."""
    lengths = np.diff(block.indptr)
    if not len(lengths) or lengths.max() <= config.neighbours:
        return block
    rows = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((block.indices, -block.data, rows))
    rank = np.arange(len(order)) - np.repeat(block.indptr[:-1], lengths)
    kept = order[rank < config.neighbours]
    return sp.csr_matrix((block.data[kept], (rows[kept], block.indices[kept])), shape=block.shape)
