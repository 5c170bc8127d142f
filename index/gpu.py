"""A replica of an index on a GPU: the CPU's copy is the master, the replica is made from it and swapped whole."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.schema import NO_ITEM, Mask, Rows, Scores
from index.base import VectorIndex
from index.checks import check_queries
from index.faiss_base import FaissIndex
from index.faiss_index import SavedIndex
from index.layout import FAISS, IndexKind
from index.lists import in_order, of_length, without_excluded

logger = logging.getLogger(__name__)

ON_GPU = frozenset({IndexKind.FLAT, IndexKind.IVF_FLAT, IndexKind.IVF_SQ8, IndexKind.IVF_PQ})
"""Kinds that FAISS can copy to a GPU."""

DEEPEST = 2_048
"""The most rows that a GPU returns for a query."""


def gpus() -> int:
    """How many GPUs this build of FAISS can use; 0 for the CPU's build."""
    return int(FAISS.get_num_gpus()) if hasattr(FAISS, "StandardGpuResources") else 0


def replicated(master: SavedIndex) -> VectorIndex:
    """The master with a replica on the first GPU where there is one that its kind, and its size, can go to."""
    if not gpus() or not isinstance(master, FaissIndex) or master.kind not in ON_GPU:
        return master
    try:
        return GpuIndex(master)
    except RuntimeError as error:
        logger.warning("searching on the CPU: the index found no place on the GPU (%s)", str(error).splitlines()[0])
        return master


class GpuIndex:
    """A master and its replica behind the VectorIndex Protocol.

    Plain and excluding searches go to the GPU, one at a time; filters, deep lists and what comes back short, or
    tied at its end, go to the master, which holds the same vectors.

    Args:
        master: of a kind in ON_GPU.

    Raises:
        ValueError: when the kind has no counterpart on a GPU.
    """

    def __init__(self, master: FaissIndex) -> None:
        self._resources = FAISS.StandardGpuResources()
        # FAISS's scratch memory on a GPU is not made for several threads.
        self._one_at_a_time = threading.Lock()
        self.replace(master)

    def replace(self, master: FaissIndex) -> None:
        """Copies a new master to the GPU, and only then searches there."""
        if master.kind not in ON_GPU:
            raise ValueError(f"{master.kind} has no counterpart on a GPU; these have: {', '.join(sorted(ON_GPU))}")
        replica = FAISS.index_cpu_to_gpu(self._resources, 0, master.faiss)
        if hasattr(replica, "nprobe"):
            replica.nprobe = min(master.effort.probes, master.layout.lists)
        # One assignment of both: a search under way ends on the pair that it began with.
        self._pair: tuple[FaissIndex, Any] = (master, replica)

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._pair[0].dimension

    def __len__(self) -> int:
        return len(self._pair[0])

    def vectors(self, rows: Rows) -> Scores:
        """See VectorIndex.vectors."""
        return self._pair[0].vectors(rows)

    def search(
        self, vectors: Scores, k: int, *, exclude: Sequence[Rows] | None = None, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        """See VectorIndex.search."""
        master, replica = self._pair
        check_queries(master, vectors, k, exclude)
        longest = max(map(len, exclude), default=0) if exclude is not None else 0
        wide = master.candidates_for(k + longest)
        # Of exact ones a row more tells whether the last place is tied with rows that were left out.
        more = min(wide + 1, len(master)) if master.kind is IndexKind.FLAT else wide
        if allowed is not None or more > DEEPEST or not len(vectors):
            return master.search(vectors, k, exclude=exclude, allowed=allowed)
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        with self._one_at_a_time:
            scores, rows = replica.search(queries, more)
        tied = scores[:, wide - 1] == scores[:, wide] if more > wide else np.zeros(len(queries), dtype=np.bool_)
        scores, rows = scores[:, :wide], rows[:, :wide]
        scores[rows == NO_ITEM] = -np.inf
        scores, rows = master.settled(queries, (scores, rows), min(k + longest, len(master)))
        if exclude is not None and longest:
            scores, rows = without_excluded(scores, rows, exclude, size=len(master))
        scores, rows = of_length(*in_order(scores, rows), k)
        again = tied | (rows[:, -1] == NO_ITEM)
        if again.any():
            left = None if exclude is None else [exclude[int(place)] for place in np.flatnonzero(again)]
            scores[again], rows[again] = master.search(queries[again], k, exclude=left)
        return scores, rows
