"""Who speaks for an item without a past: the items nearest to it by text, which have one."""

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from data.schema import Rows
from retrieval.likeness import SHARPNESS, Likeness

STAND_INS = 20
"""How many speak for one item."""

ITEMS_AT_ONCE = 256
FILE = "stand_ins.parquet"


def find_stand_ins(likeness: Likeness, taken: np.ndarray, *, items: Rows | None = None) -> sp.csr_matrix:
    """(N, N) float32, sparse: the row of an item never taken holds the weights, sum 1, of the taken items most like it.

    Weights are likeness ** SHARPNESS. Rows of taken items are empty, and so is that of an item like no other.

    Args:
        likeness: of N items.
        taken: (N,) interactions of each item in training.
        items: rows of items never taken to which this is limited; None: all of them.
    """
    n_items = len(taken)
    cold, warm = np.flatnonzero(taken == 0) if items is None else items, np.flatnonzero(taken)
    wanted = min(STAND_INS, len(warm))
    if not len(cold) or not wanted:
        return sp.csr_matrix((n_items, n_items), dtype=np.float32)
    rows, columns, weights = [], [], []
    for start in range(0, len(cold), ITEMS_AT_ONCE):
        items = cold[start : start + ITEMS_AT_ONCE]
        alike = likeness.between(items, warm)  # (b, W)
        nearest = np.argpartition(-alike, wanted - 1, axis=1)[:, :wanted]
        near = np.take_along_axis(alike, nearest, 1) ** SHARPNESS
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
