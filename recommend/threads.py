"""How many threads one request is computed in."""

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from index.layout import FAISS


def compute_in(threads: int) -> None:
    """Limits the calling thread: one answer is many small steps, in which more threads mostly wait for one another."""
    torch.set_num_threads(threads)
    FAISS.omp_set_num_threads(threads)


def compute_products_in(threads: int) -> None:
    """Limits the whole process in the products of NumPy, SciPy and FAISS.

    Their OpenBLAS keeps its threads spinning for a while after each product, in case another comes: under a few
    requests a second they would never stop, and take a core from whoever answers.
    """
    threadpool_limits(threads, user_api="blas")
