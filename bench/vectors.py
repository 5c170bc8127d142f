"""Seeded vectors that cluster as those of texts do, drawn chunk by chunk: any size, never all in memory."""

from collections.abc import Iterator

import numpy as np

from data.schema import Scores

CHUNK = 100_000
"""Vectors drawn from one generator; part of what a seed means."""

SPREAD = 0.9
"""Length of a vector's own part beside its cluster's centre of length 1."""


class ClusteredVectors:
    """Unit vectors around `clusters` centres whose sizes fall as 1 / √rank.

    Both the centres and what is each vector's own fall off along rotated axes, as 1 / √axis, so that most of the
    variance lies in some dozens of directions, as it does in sentence embeddings.

    Args:
        count: N, how many there are.
        dimension: D.
        clusters: centres; None: one for every 400 vectors, at least 16.
        seed: two collections of one seed and count are equal.
    """

    def __init__(self, count: int, dimension: int, *, clusters: int | None = None, seed: int = 0) -> None:
        self.count, self.dimension, self.seed = count, dimension, seed
        rng = np.random.default_rng([seed, dimension])
        clusters = clusters or max(16, count // 400)
        axes, _ = np.linalg.qr(rng.standard_normal((dimension, dimension)))
        scale = np.arange(1, dimension + 1) ** -0.5
        scale /= np.linalg.norm(scale)
        self._axes = np.asarray(scale[:, None] * axes, dtype=np.float32)  # (D, D)
        self._centres = np.asarray(_unit(rng.standard_normal((clusters, dimension), dtype=np.float32) @ self._axes))
        share = np.arange(1, clusters + 1) ** -0.5
        self._up_to = np.cumsum(share / share.sum())

    def chunk(self, number: int) -> Scores:
        """(CHUNK, D) float32, or fewer at the end: the vectors from row `number` × CHUNK on."""
        size = min(CHUNK, self.count - number * CHUNK)
        return self._drawn(np.random.default_rng([self.seed, self.dimension, 1, number]), size)

    def chunks(self, *, start: int = 0) -> Iterator[Scores]:
        """All chunks from number `start` on."""
        for number in range(start, -(-self.count // CHUNK)):
            yield self.chunk(number)

    def all(self) -> Scores:
        """(N, D) float32."""
        return np.concatenate(list(self.chunks()))

    def queries(self, count: int) -> Scores:
        """(count, D) float32 vectors of the same kind that are not among those stored."""
        return self._drawn(np.random.default_rng([self.seed, self.dimension, 2]), count)

    def users(self, count: int, *, items: int = 8) -> Scores:
        """(count, D) float32 means of `items` vectors out of two clusters each, as a history's vector is."""
        rng = np.random.default_rng([self.seed, self.dimension, 3])
        clusters = np.searchsorted(self._up_to, rng.random((count, 2)))[:, np.arange(items) % 2]  # (count, items)
        own = rng.standard_normal((count, items, self.dimension), dtype=np.float32) @ self._axes
        drawn = self._centres[np.minimum(clusters, len(self._centres) - 1)] + SPREAD * own
        return _unit(_unit(drawn).mean(axis=1))

    def _drawn(self, rng: np.random.Generator, size: int) -> Scores:
        clusters = np.searchsorted(self._up_to, rng.random(size, dtype=np.float32))
        own = rng.standard_normal((size, self.dimension), dtype=np.float32) @ self._axes
        own *= np.float32(SPREAD)
        own += self._centres[np.minimum(clusters, len(self._centres) - 1)]
        return _unit(own)


def _unit(vectors: Scores) -> Scores:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)
