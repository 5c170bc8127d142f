"""Item texts as topics: the directions in which the words of a catalog go together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.utils.extmath import randomized_svd

from data.schema import Rows, Scores
from retrieval.distributed import ALONE, Team
from retrieval.encode import centred
from retrieval.words import Words

SEED = 19_900_901
POWER_ITERATIONS = 3
MOST_WORDS = 50_000
"""Of a large catalog the words that weigh most in all; the others hardly move its strongest directions."""
WEAKEST = 1e-3
"""Of the strongest direction: what is weaker is rounding."""


@dataclass(frozen=True)
class Topics:
    """Latent semantic analysis (Deerwester et al. 1990) of a catalog's weighted words.

    Of the words W = U S Vᵀ, one line an item, the K strongest directions are kept. They know the names and terms that
    this catalog repeats, where a sentence-transformer knows what a text is about.

    Attributes:
        places: (F,) int64, rising, of the words that have a say among the features of `Words`.
        directions: (F, K) float16, V, strongest first, noughts beyond the rank.
        mean: (K,) float32 of the catalog's items along them, each of length 1.
    """

    places: Rows
    directions: npt.NDArray[np.float16]
    mean: Scores

    @classmethod
    def of(cls, words: Words, count: int, team: Team = ALONE) -> "Topics":
        """The `count` strongest directions (randomised: Halko et al. 2011).

        Args:
            team: whose leader finds them, so that all have the same to the last bit.
        """
        weight = np.bincount(words.vectors.indices, words.vectors.data**2, minlength=words.vectors.shape[1])
        places = np.sort(np.argsort(-weight, kind="stable")[: min(MOST_WORDS, np.count_nonzero(weight))])
        used = words.vectors[:, places]

        def found() -> npt.NDArray[np.float16]:
            directions = np.zeros((len(places), count), dtype=np.float16)
            if most := min(count, *used.shape):
                _, strength, right = randomized_svd(
                    used, most, n_iter=POWER_ITERATIONS, power_iteration_normalizer="LU", random_state=SEED
                )
                directions[:, :most] = right.T * (strength > WEAKEST * strength[0])
            return directions

        directions = team.array_from_leader(found, like=np.empty((len(places), count), dtype=np.float16))
        return cls(places, directions, _unit(_along(used, directions)).mean(axis=0))

    def read(self, words: sp.csr_matrix) -> Scores:
        """(n, K) float32 of texts, the catalog's or others: centred, of length 1, or 0 without a word that has a say.

        Args:
            words: (n, FEATURES) as the catalog weighs them.
        """
        scores = _along(words[:, self.places], self.directions)
        return np.where(np.any(scores, axis=1, keepdims=True), centred(_unit(scores), self.mean), np.float32(0))

    def save(self, folder: Path) -> None:
        """Writes the directions, and what they are of."""
        save_file(
            {"places": self.places, "directions": self.directions, "mean": self.mean}, folder / "topics.safetensors"
        )

    @classmethod
    def load(cls, folder: Path) -> "Topics":
        """Reads what `save` wrote."""
        return cls(**load_file(folder / "topics.safetensors"))


def _along(words: sp.csr_matrix, directions: npt.NDArray[np.float16]) -> Scores:
    """(n, K) float32: W V, of the words that stand in these texts alone."""
    near = np.unique(words.indices)
    return np.asarray(words[:, near] @ directions[near].astype(np.float32))


def beside(text: Scores, topics: Scores) -> Scores:
    """(n, E + K) of length 1, what towers read: centred text vectors (n, E) and topics (n, K), both counting alike."""
    return _unit(np.concatenate([text, topics], axis=1)) if topics.shape[1] else text


def _unit(vectors: Scores) -> Scores:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), dtype=np.float32)
