"""Item texts as topics: the directions in which the words of a catalog go together."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.utils.extmath import randomized_svd

from data.schema import Scores
from retrieval.encode import centred
from retrieval.words import Words

SEED = 19_900_901
POWER_ITERATIONS = 3
MOST_WORDS = 50_000
"""Of a large catalog the words that weigh most in all; the others hardly move its strongest directions."""
WEAKEST = 1e-3
"""Of the strongest direction: what is weaker is rounding, and would be blown up where other texts are read."""


@dataclass(frozen=True)
class Topics:
    """Latent semantic analysis (Deerwester et al. 1990) of a catalog's weighted words.

    Of the words W = U S Vᵀ, one line an item, the K strongest directions are kept. They know the names and terms that
    this catalog repeats, where a sentence-transformer knows what a text is about.

    Attributes:
        scores: (N, K) float16, U S, strongest first, noughts beyond the rank.
    """

    scores: npt.NDArray[np.float16]

    @classmethod
    def of(cls, words: Words, count: int) -> "Topics":
        """The `count` strongest directions (randomised: Halko et al. 2011)."""
        scores = np.zeros((words.vectors.shape[0], count), dtype=np.float32)
        weight = np.bincount(words.vectors.indices, words.vectors.data**2, minlength=words.vectors.shape[1])
        most = np.sort(np.argsort(-weight, kind="stable")[: min(MOST_WORDS, np.count_nonzero(weight))])
        used = words.vectors[:, most]
        found = min(count, *used.shape)
        if found:
            left, strength, _ = randomized_svd(
                used, found, n_iter=POWER_ITERATIONS, power_iteration_normalizer="LU", random_state=SEED
            )
            scores[:, :found] = left * np.where(strength > WEAKEST * strength[0], strength, 0)
        return cls(scores.astype(np.float16))

    @cached_property
    def _mean(self) -> Scores:
        return np.asarray(_unit(self.scores).mean(axis=0))

    @cached_property
    def _squares(self) -> Scores:
        """(K,) S², 1 beyond the rank."""
        squares = np.einsum("nk,nk->k", self.scores, self.scores, dtype=np.float32)
        return np.where(squares > 0, squares, np.float32(1))

    @property
    def vectors(self) -> Scores:
        """(N, K) float32 of the items, centred, of length 1, or 0 without a word that others share.

        Made anew each time: those of a large catalog are large.
        """
        return self._centred(self.scores)

    def read(self, words: sp.csr_matrix, catalog: Words) -> Scores:
        """(n, K) float32 of other texts, as `vectors` are: folded in as w V = (w Wᵀ) (U S) S⁻².

        Args:
            words: (n, FEATURES) as the catalog weighs them.
            catalog: those that the topics were found in, and behind them, of items that came later, any.
        """
        likeness = words @ catalog.vectors[: len(self.scores)].T
        near = np.unique(likeness.indices)
        return self._centred((likeness[:, near] @ self.scores[near].astype(np.float32)) / self._squares)

    def _centred(self, scores: npt.NDArray[np.floating]) -> Scores:
        return np.where(np.any(scores, axis=1, keepdims=True), centred(_unit(scores), self._mean), np.float32(0))

    def save(self, folder: Path) -> None:
        """Writes the scores."""
        save_file({"scores": self.scores}, folder / "topics.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """Reads what `save` wrote."""
        return cls(load_file(folder / "topics.safetensors")["scores"])


def beside(text: Scores, topics: Scores) -> Scores:
    """(n, E + K) of length 1, what towers read: centred text vectors (n, E) and topics (n, K), both counting alike."""
    return _unit(np.concatenate([text, topics], axis=1)) if topics.shape[1] else text


def _unit(vectors: npt.NDArray[np.floating]) -> Scores:
    vectors = np.asarray(vectors, dtype=np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), dtype=np.float32)
