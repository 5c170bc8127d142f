"""Who speaks for an item without a past: the items nearest to it by text, which have one."""

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from data.schema import Scores
from retrieval.words import Words

STAND_INS = 20
"""How many speak for one item."""
SHARPNESS = 3
"""Weights are likeness ** SHARPNESS, divided by their sum."""
WORDS_WEIGHT = 2.0
"""Of the cosine of words beside the cosine of text vectors."""

ITEMS_AT_ONCE = 256
FILE = "stand_ins.parquet"


def find_stand_ins(text: Scores, words: Words, taken: np.ndarray) -> sp.csr_matrix:
    """(N, N) float32, sparse: the row of an item never taken holds the weights, sum 1, of its nearest taken items.

    Rows of taken items are empty, and so is the row of an item whose text is like no other.

    Args:
        text: (N, E) float32, mean-centred text vectors of length 1.
        taken: (N,) interactions of each item in training.
    """
    n_items = len(text)
    cold, warm = np.flatnonzero(taken == 0), np.flatnonzero(taken)
    wanted = min(STAND_INS, len(warm))
    if not len(cold) or not wanted:
        return sp.csr_matrix((n_items, n_items), dtype=np.float32)
    known_text, known_words = text[warm].T, words.vectors[warm].T.tocsr()
    rows, columns, weights = [], [], []
    for start in range(0, len(cold), ITEMS_AT_ONCE):
        items = cold[start : start + ITEMS_AT_ONCE]
        likeness = text[items] @ known_text  # (b, W)
        likeness += WORDS_WEIGHT * (words.vectors[items] @ known_words).toarray()
        nearest = np.argpartition(-likeness, wanted - 1, axis=1)[:, :wanted]
        near = np.maximum(np.take_along_axis(likeness, nearest, 1), 0) ** SHARPNESS
        rows.append(np.repeat(items, wanted))
        columns.append(warm[nearest].ravel())
        weights.append((near / np.maximum(near.sum(axis=1, keepdims=True), 1e-9)).ravel())
    entries = (np.concatenate(weights).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    found = sp.csr_matrix(entries, shape=(n_items, n_items))
    found.eliminate_zeros()
    return found


def save_stand_ins(folder: Path, stand_ins: sp.csr_matrix) -> None:
    """Writes the weights as triples of item, stand-in and weight."""
    triples = stand_ins.tocoo()
    rows, columns = triples.row.astype(np.int32), triples.col.astype(np.int32)
    pl.DataFrame({"item_row": rows, "stand_in_row": columns, "weight": triples.data}).write_parquet(folder / FILE)


def load_stand_ins(folder: Path, n_items: int) -> sp.csr_matrix:
    """Reads what `save_stand_ins` wrote for a catalog of `n_items`."""
    frame = pl.read_parquet(folder / FILE)
    rows, columns = frame["item_row"].to_numpy(), frame["stand_in_row"].to_numpy()
    return sp.csr_matrix((frame["weight"].to_numpy(), (rows, columns)), shape=(n_items, n_items))
