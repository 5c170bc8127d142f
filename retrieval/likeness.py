"""How like in text two items are, by a sentence-transformer's meaning and by the words themselves."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from data.schema import Rows, Scores
from retrieval.words import Words

WORDS_WEIGHT = 2.0
"""Of the cosine of words beside the cosine of text vectors."""
SHARPNESS = 3
"""Likenesses are raised to this power before they are summed: one close item counts for more than many distant ones."""


@dataclass(frozen=True)
class Likeness:
    """Between items of one catalog.

    Attributes:
        text: (N, E) float32, mean-centred text vectors of length 1.
        words: of the same texts.
    """

    text: Scores
    words: Words

    def between(self, some: Rows, others: Rows) -> Scores:
        """(n, m) float32 in [0, 1]: the mean of both cosines, negative ones as 0, that of words counted twice."""
        meaning = np.maximum(self.text[some] @ self.text[others].T, 0)
        names = self.words.cosines(some, others)
        return np.asarray((meaning + WORDS_WEIGHT * names) / (1 + WORDS_WEIGHT), dtype=np.float32)

    def to_recent(self, recent: sp.csr_matrix, rows: Rows) -> Scores:
        """(B, K) float32: Σ over recent items of weight · likeness ** SHARPNESS, for the items at `rows` (B, K).

        Args:
            recent: (B, N) weights of each history's recent items.
        """
        out = np.zeros(rows.shape, dtype=np.float32)
        for place in range(len(rows)):
            start, end = recent.indptr[place], recent.indptr[place + 1]
            if start < end:
                sharp = self.between(rows[place], recent.indices[start:end]) ** SHARPNESS
                # np.matmul would warn of what AVX-512 kernels read behind the last row, though nothing comes of it.
                np.dot(sharp, recent.data[start:end], out=out[place])
        return out
