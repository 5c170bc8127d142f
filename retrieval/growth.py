"""A fitted retriever over a catalog that has changed since: new items, other texts, items that are gone."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data.schema import NO_ITEM, Rows, Scores
from index.base import VectorIndex
from retrieval.ensemble import TowerEnsemble
from retrieval.likeness import Likeness
from retrieval.retriever import Retriever
from retrieval.stand_ins import STAND_INS, find_stand_ins
from retrieval.topics import beside
from retrieval.towers import TwoTowers
from retrieval.transitions import Transitions
from retrieval.trend import HALF, Trend
from retrieval.words import Words


@dataclass(frozen=True)
class ReadItems:
    """Items whose texts were read after the retriever was fitted: new ones, and known ones with another text.

    Attributes:
        rows: (n,) int64, each once, rising.
        texts: n texts.
        text: (n, E) float32, their vectors, centred like those of the retriever.
        stand_in_rows: (n, S) int64, who speaks for those without a past, see `retrieval.stand_ins`; NO_ITEM where
            there are fewer.
        stand_in_weights: (n, S) float32, beside them.
    """

    rows: Rows
    texts: Sequence[str]
    text: Scores
    stand_in_rows: Rows
    stand_in_weights: Scores

    @classmethod
    def of(cls, retriever: Retriever, rows: Rows, texts: Sequence[str], text: Scores) -> "ReadItems":
        """The same items with their stand-ins, found among the items that `retriever` has met in training."""
        unspoken = cls(rows, texts, text, np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32))
        n_items = max(len(retriever.text), int(rows.max(initial=-1)) + 1)
        taken = _padded(taken_in_training(retriever.trend), n_items)
        cold = rows[taken[rows] == 0]
        likeness = Likeness(*_texts_with(retriever, unspoken, n_items))
        found = find_stand_ins(likeness, taken, items=cold)[rows]
        speakers = np.full((len(rows), STAND_INS), NO_ITEM, dtype=np.int64)
        weights = np.zeros((len(rows), STAND_INS), dtype=np.float32)
        lines = np.repeat(np.arange(len(rows)), np.diff(found.indptr))
        places = np.arange(found.nnz) - found.indptr[lines]
        speakers[lines, places], weights[lines, places] = found.indices, found.data
        return replace(unspoken, stand_in_rows=speakers, stand_in_weights=weights)


def grown(retriever: Retriever, read: ReadItems, *, n_items: int, removed: Rows, index: VectorIndex) -> Retriever:
    """The same retriever over `n_items` rows; what it learned of known items stays, whatever their texts are now.

    Args:
        retriever: as it was fitted.
        read: all items that have been read since; every row that the retriever lacks is among them.
        n_items: rows in all, removed ones among them: they may stand in histories.
        removed: rows that must never be a candidate.
        index: of the item vectors, without the removed ones.
    """
    text, words = _texts_with(retriever, read, n_items)
    topics = retriever.topics.read(words.vectors[read.rows])
    read_by_towers = _replaced(retriever.towers.text, read.rows, beside(read.text, topics), n_items)
    transitions = _transitions(retriever.transitions, read, n_items)
    taken = _padded(taken_in_training(retriever.trend), n_items)
    retold = dict(zip(read.rows.tolist(), read.texts, strict=True))
    towers = _towers(retriever.towers, read_by_towers, retold, taken=taken, stand_ins=transitions.stand_ins)
    item_vectors = _replaced(retriever.item_vectors, read.rows, towers.item_vectors(read.rows), n_items)
    available = np.ones(n_items, dtype=np.bool_)
    available[removed] = False
    return replace(
        retriever,
        towers=towers,
        transitions=transitions,
        item_vectors=item_vectors,
        text=text,
        words=words,
        trend=retriever.trend.grown(n_items),
        recent_popularity=_padded(retriever.recent_popularity, n_items),
        index=index,
        available=available if len(removed) else None,
    )


def taken_in_training(trend: Trend) -> Rows:
    """(N,) interactions of each item in training."""
    return np.asarray(np.rint(np.exp(trend.ever.astype(np.float64)) - HALF), dtype=np.int64)


def _texts_with(retriever: Retriever, read: ReadItems, n_items: int) -> tuple[Scores, Words]:
    text = _replaced(retriever.text, read.rows, read.text, n_items)
    vectors = _replaced_rows(retriever.words.vectors, read.rows, retriever.words.read(read.texts), n_items)
    return text, replace(retriever.words, vectors=vectors)


def _transitions(transitions: Transitions, read: ReadItems, n_items: int) -> Transitions:
    weights = _resized(transitions.weights, n_items)
    known = transitions.stand_ins
    before = sp.csr_matrix((n_items, n_items), dtype=np.float32) if known is None else _resized(known, n_items)
    present = read.stand_in_rows != NO_ITEM
    entries = (read.stand_in_weights[present], (np.nonzero(present)[0], read.stand_in_rows[present]))
    spoken = sp.csr_matrix(entries, shape=(len(read.rows), n_items), dtype=np.float32)
    # Counts stay behind: a changed catalog is for use, and what is counted further is the log's own.
    return replace(
        transitions, weights=weights, counts=None, stand_ins=_replaced_rows(before, read.rows, spoken, n_items)
    )


def _towers(
    ensemble: TowerEnsemble,
    text: Scores,
    retold: Mapping[int, str],
    *,
    taken: Rows,
    stand_ins: sp.csr_matrix | None,
) -> TowerEnsemble:
    members = []
    for member in ensemble.members:
        towers: TwoTowers = member.towers.over(text, retold)
        towers.settle_cold_items(taken, stand_ins)
        members.append(replace(member, towers=towers))
    return replace(ensemble, members=tuple(members))


def _replaced(table: Scores, rows: Rows, values: Scores, n_items: int) -> Scores:
    """(n_items, …) the table with other values at `rows`, some of which may lie beyond its end."""
    wider = np.empty((n_items, *table.shape[1:]), dtype=table.dtype)
    wider[: len(table)] = table
    wider[rows] = values
    return wider


def _replaced_rows(table: sp.csr_matrix, rows: Rows, values: sp.csr_matrix, n_items: int) -> sp.csr_matrix:
    """The same for a sparse table."""
    source = np.arange(n_items)
    source[rows] = len(source) + np.arange(len(rows))
    tall = copy.copy(table)
    tall.resize(n_items, table.shape[1])
    return sp.vstack([tall, values], format="csr")[source]


def _resized(square: sp.csr_matrix, n_items: int) -> sp.csr_matrix:
    wider = copy.copy(square)
    wider.resize(n_items, n_items)
    return wider


def _padded(values: npt.NDArray[Any], n_items: int, filling: float = 0) -> npt.NDArray[Any]:
    return np.pad(values, (0, n_items - len(values)), constant_values=filling)
