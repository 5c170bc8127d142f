"""Item texts as weighted words: a name that two texts share counts, where a sentence-transformer sees a likeness."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer

from data.schema import Rows, Scores

FEATURES = 2**20
"""Places that words are hashed to; some of a large catalog's share one."""

FEW = 256
"""Up to so many items on the other side their words fit into a small dense table."""

RARITY = 1.5
"""Above 1, rare words such as names count for more, common ones such as genres for less."""

_WORD = re.compile(r"\w+")
_PART = re.compile(r"[|,;]")


@dataclass(frozen=True)
class Words:
    """TF-IDF over words, pairs of neighbouring words, and whole parts of a text (an author, a genre, a brand).

    A word counts once a text, by log((N + 1) / (texts with it + 1)) to the power of RARITY, and not at all where one
    text alone has it.

    Attributes:
        vectors: (N, FEATURES) float32, sparse, rows of length 1, or 0 without a word that counts.
        idf: (FEATURES,) float32, the weights of the words.
    """

    vectors: sp.csr_matrix
    idf: Scores

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Weighs the words of a catalog by how rare they are in it."""
        found = _counted(texts)
        texts_with = np.bincount(found.indices, minlength=FEATURES)
        rarity = np.log((len(texts) + 1) / (texts_with + 1)) ** RARITY
        idf = np.where(texts_with >= 2, rarity, 0.0).astype(np.float32)
        return cls(_weighed(found, idf), idf)

    def read(self, texts: Sequence[str]) -> sp.csr_matrix:
        """(n, FEATURES) vectors of texts that may be new, with the weights of this catalog."""
        return _weighed(_counted(texts), self.idf)

    def cosines(self, some: Rows, others: Rows) -> Scores:
        """(n, m) float32 of the items at `some` (n,) with those at `others` (m,)."""
        if len(others) > FEW:
            return np.asarray((self.vectors[some] @ self.vectors[others].T).toarray())
        # Their words alone as the columns of a dense table, and the entries of ours that are among them: a request asks
        # this of few items, and what SciPy checks of each matrix takes longer than their product.
        theirs, their_entries = self._entries(others)
        words, columns = np.unique(self.vectors.indices[their_entries], return_inverse=True)
        table = np.zeros((len(words), len(others)), dtype=np.float32)
        table[columns, theirs] = self.vectors.data[their_entries]
        ours, our_entries = self._entries(some)
        indices = self.vectors.indices[our_entries]
        at = np.searchsorted(words, indices)
        shared = np.flatnonzero(words[np.minimum(at, len(words) - 1)] == indices) if len(words) else at[:0]
        out = np.zeros((len(some), len(others)), dtype=np.float32)
        if len(shared):
            products = table[at[shared]] * self.vectors.data[our_entries[shared], None]
            first = np.flatnonzero(np.diff(ours[shared], prepend=-1))
            out[ours[shared[first]]] = np.add.reduceat(products, first, axis=0)
        return out

    def _entries(self, rows: Rows) -> tuple[Rows, Rows]:
        """Of each entry of the vectors at `rows`: its place among these, and its place among all entries."""
        start = self.vectors.indptr[rows]
        length = self.vectors.indptr[rows + 1] - start
        before = np.cumsum(length) - length
        return np.repeat(np.arange(len(rows)), length), np.repeat(start - before, length) + np.arange(length.sum())

    def save(self, folder: Path) -> None:
        """Writes the non-zero entries, and the weights of the words."""
        parts = {"data": self.vectors.data, "indices": self.vectors.indices, "indptr": self.vectors.indptr}
        save_file({**parts, "idf": self.idf}, folder / "words.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote."""
        saved = load_file(folder / "words.safetensors")
        entries = (saved["data"], saved["indices"], saved["indptr"])
        return cls(sp.csr_matrix(entries, shape=(len(saved["indptr"]) - 1, FEATURES)), saved["idf"])


def _counted(texts: Sequence[str]) -> sp.csr_matrix:
    if not texts:  # which scikit-learn refuses
        return sp.csr_matrix((0, FEATURES), dtype=np.float32)
    hashing = HashingVectorizer(
        analyzer=_features, n_features=FEATURES, binary=True, alternate_sign=False, norm=None, dtype=np.float32
    )
    return hashing.transform(texts)


def _features(text: str) -> list[str]:
    """Words, pairs of neighbours, and whole parts; a part is marked, so that it is not its only word."""
    lower = text.lower()
    words = _WORD.findall(lower)
    parts = [part.strip() for part in _PART.split(lower)]
    return [*words, *map(" ".join, pairwise(words)), *(f"={part}" for part in parts if part)]


def _weighed(found: sp.csr_matrix, idf: Scores) -> sp.csr_matrix:
    weighed = found.copy()
    weighed.data *= idf[weighed.indices]
    weighed.eliminate_zeros()
    return _unit_rows(weighed)


def _unit_rows(vectors: sp.csr_matrix) -> sp.csr_matrix:
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    return (sp.diags(1 / np.maximum(lengths, 1e-6)) @ vectors).tocsr().astype(np.float32)
