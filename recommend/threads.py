"""How many threads one request is computed in."""

import torch

from index.layout import FAISS


def compute_in(threads: int) -> None:
    """Limits the calling thread: one answer is many small steps, in which more threads mostly wait for one another."""
    torch.set_num_threads(threads)
    FAISS.omp_set_num_threads(threads)
