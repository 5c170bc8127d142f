"""Item → item counts: what a low-rank tower cannot memorise, as a second, sparse source of candidates."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field

from data.schema import NO_ITEM, Histories

ROUNDING = 1e-5
"""What is left of a count that is taken from itself, as a share of it, is less."""


class TransitionsConfig(BaseModel):
    """How pairs are counted, normalised, and summed over a history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(10, ge=1, description="pairs up to this many steps apart are counted")
    gap_decay: float = Field(0.8, gt=0, le=1, description="weight of a pair: gap_decay ** (steps apart - 1)")
    gap_days: float = Field(200.0, gt=0, description="pairs this many days apart count half, where times are known")
    backward: float = Field(0.5, ge=0, description="weight of the pair read backwards (later item → earlier item)")
    row_power: float = Field(0.5, ge=0, le=1, description="counts are divided by (row sum) ** row_power")
    column_power: float = Field(0.3, ge=0, le=1, description="and by (column sum) ** column_power")
    history_items: int = Field(10, ge=1, description="most recent items of a history that are summed")
    history_decay: float = Field(0.5, gt=0, le=1, description="weight of the item j steps back: decay ** j")


@dataclass(frozen=True)
class Transitions:
    """A normalised (N, N) float32 matrix of item → item weights, fitted by counting.

    Attributes:
        stand_ins: (N, N) who speaks for each item that was never counted, see `retrieval.stand_ins`; None: nobody.
        counts: (N, N) what `weights` was made of, to go on counting; None: only the weights are at hand.
    """

    weights: sp.csr_matrix
    config: TransitionsConfig
    stand_ins: sp.csr_matrix | None = None
    counts: sp.csr_matrix | None = None

    @classmethod
    def fit(cls, train: Histories, n_items: int, config: TransitionsConfig) -> "Transitions":
        """Counts all pairs of `train` within the window; seconds on millions of interactions."""
        return cls.from_counts(count_pairs(train, n_items, config), config)

    @classmethod
    def from_counts(cls, counts: sp.csr_matrix, config: TransitionsConfig) -> "Transitions":
        """Normalises what `count_pairs` counted with the same window, gap decay and backward weight."""
        row_sum = np.asarray(counts.sum(1)).ravel()
        column_sum = np.asarray(counts.sum(0)).ravel()
        scale_rows = sp.diags(_inverse_power(row_sum, config.row_power))
        scale_columns = sp.diags(_inverse_power(column_sum, config.column_power))
        return cls((scale_rows @ counts @ scale_columns).tocsr().astype(np.float32), config, counts=counts)

    def with_more(self, lists: Histories, *, before: Histories | None = None) -> "Transitions":
        """As if fitted on these lists as well, at the cost of counting them alone.

        An item that is counted for the first time speaks for itself from then on.

        Args:
            lists: of users who were not counted, or whole lists that begin as those in `before`.
            before: as many lists that were counted, of users whose lists have grown since; None: all are new.

        Raises:
            ValueError: when only the weights are at hand.
        """
        if self.counts is None:
            raise ValueError("these transitions have no counts to go on from: load them with counted=True")
        n_items = self.weights.shape[0]
        more = count_pairs(lists, n_items, self.config)
        if before is not None:
            new = more - count_pairs(before, n_items, self.config)
            more = new.multiply(new > ROUNDING * more)
        counts = self.counts + more
        stand_ins = self.stand_ins
        if stand_ins is not None:
            unknown = (np.asarray(counts.sum(0)).ravel() + np.asarray(counts.sum(1)).ravel()) == 0
            stand_ins = (sp.diags(unknown.astype(np.float32)) @ stand_ins).tocsr()
            stand_ins.eliminate_zeros()
        return replace(Transitions.from_counts(counts.tocsr(), self.config), stand_ins=stand_ins)

    def history_weights(self, histories: Histories) -> sp.csr_matrix:
        """(B, N) float32: how much each item of a history counts, the most recent most."""
        recent = histories.last(self.config.history_items)  # (B, H)
        place = np.broadcast_to(np.arange(recent.shape[1]), recent.shape)
        present = recent != NO_ITEM
        values = (self.config.history_decay ** place[present]).astype(np.float32)
        users = np.nonzero(present)[0]
        shape = (len(histories), self.weights.shape[0])
        return sp.csr_matrix((values, (users, recent[present])), shape=shape)

    def scores(self, histories: Histories) -> sp.csr_matrix:
        """(B, N) float32, sparse: the decayed sum of the rows of each history's last items."""
        return self.following(self.history_weights(histories))

    def following(self, recent: sp.csr_matrix) -> sp.csr_matrix:
        """(B, N) float32, sparse: the same from weights of recent items (B, N).

        An item that was never counted has its stand-ins' rows where it is recent, and their scores where it follows.
        """
        if self.stand_ins is None or not self.stand_ins.nnz:
            return (recent @ self.weights).tocsr()
        if self._has_stand_ins[recent.indices].any():
            recent = recent + recent @ self.stand_ins
        counted = recent @ self.weights
        return (counted + counted @ self._spoken_for).tocsr()

    @cached_property
    def _has_stand_ins(self) -> np.ndarray:
        """(N,) true for items that others speak for."""
        assert self.stand_ins is not None
        return np.asarray(np.diff(self.stand_ins.indptr) > 0)

    @cached_property
    def _spoken_for(self) -> sp.csr_matrix:
        """(N, N): the row of a stand-in holds its weights in the items that it speaks for."""
        assert self.stand_ins is not None
        return self.stand_ins.T.tocsr()

    def save(self, folder: Path) -> None:
        """Writes the non-zero weights as triples of row, column and weight, with their counts where these are known."""
        weights = self.weights.sorted_indices()
        triples = weights.tocoo()
        columns = {
            "from_row": triples.row.astype(np.int32),
            "to_row": triples.col.astype(np.int32),
            "weight": triples.data,
        }
        if self.counts is not None:
            columns["count"] = self.counts.sorted_indices().data.astype(np.float32)  # normalising moves no entry
        pl.DataFrame(columns).write_parquet(folder / "transitions.parquet")

    @classmethod
    def load(cls, folder: Path, n_items: int, config: TransitionsConfig, *, counted: bool = False) -> "Transitions":
        """Reads what `save` wrote for a catalog of `n_items`.

        Args:
            counted: with the counts, which take as much memory again, and serve `with_more` alone.
        """
        wanted = ["from_row", "to_row", "weight", *(["count"] if counted else [])]
        frame = pl.read_parquet(folder / "transitions.parquet", columns=wanted)
        places = frame["from_row"].to_numpy(), frame["to_row"].to_numpy()
        shape = (n_items, n_items)
        counts = sp.csr_matrix((frame["count"].to_numpy(), places), shape=shape) if counted else None
        return cls(sp.csr_matrix((frame["weight"].to_numpy(), places), shape=shape), config, counts=counts)


def count_pairs(train: Histories, n_items: int, config: TransitionsConfig) -> sp.csr_matrix:
    """(N, N) float32: how often column follows row within the window, decayed by steps and days between them.

    Counts of parts of a log that share no list add up to the counts of the whole.
    """
    list_of_row = train.list_of_row
    counts = sp.csr_matrix((n_items, n_items), dtype=np.float32)
    for gap in range(1, min(config.window, max(len(train.item_rows) - 1, 0)) + 1):
        together = list_of_row[gap:] == list_of_row[:-gap]
        earlier, later = train.item_rows[:-gap][together], train.item_rows[gap:][together]
        weight = config.gap_decay ** (gap - 1) * _nearness(train, gap, config.gap_days)[together]
        forward = sp.csr_matrix((weight.astype(np.float32), (earlier, later)), shape=(n_items, n_items))
        counts = counts + forward + config.backward * forward.T.tocsr()
    return counts.tocsr()


def _nearness(train: Histories, gap: int, gap_days: float) -> np.ndarray:
    """(R - gap,) 1 / (1 + days / gap_days) between each entry and the one `gap` places on; 1 where unknown."""
    if train.timestamps is None:
        return np.ones(len(train.item_rows) - gap)
    times = train.timestamps
    known = (times[gap:] != Histories.NO_TIME) & (times[:-gap] != Histories.NO_TIME)
    days = np.where(known, np.abs(np.where(known, times[gap:], 0) - np.where(known, times[:-gap], 0)) / 86_400, 0.0)
    return 1 / (1 + days / gap_days)


def _inverse_power(sums: np.ndarray, power: float) -> np.ndarray:
    """sums ** -power, and 0 for empty sums."""
    return np.where(sums > 0, np.maximum(sums, 1e-12) ** -power, 0.0).astype(np.float32)
