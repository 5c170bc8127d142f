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
        ours, theirs = self.vectors[some], self.vectors[others]
        if len(others) > FEW:
            return np.asarray((ours @ theirs.T).toarray())
        # Their words alone as the columns of a dense table: many times faster than a product of two sparse matrices.
        words, columns = np.unique(theirs.indices, return_inverse=True)
        table = np.zeros((len(words) + 1, len(others)), dtype=np.float32)  # the last row is for words they lack
        table[columns, np.repeat(np.arange(len(others)), np.diff(theirs.indptr))] = theirs.data
        at = np.searchsorted(words, ours.indices)
        shared = at < len(words)
        shared[shared] = words[at[shared]] == ours.indices[shared]
        entries = (ours.data, np.where(shared, at, len(words)), ours.indptr)
        return np.asarray(sp.csr_matrix(entries, shape=(len(some), len(words) + 1)) @ table)

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
