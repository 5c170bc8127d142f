"""Memory that ran out, told with the setting that would fit."""

from collections.abc import Iterator
from contextlib import contextmanager

from config import Config
from store.errors import OutOfMemory

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
"""What libraries write in a RuntimeError where memory ran out."""


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Turns an error for want of memory into one that says what was done and what to set.

    Args:
        what: was being done, as in "training the towers".
        remedy: settings that need less, as they are typed.

    Raises:
        OutOfMemory: where memory ran out; every other error passes unchanged.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error).lower()
        # PyTorch's own class of this error is a RuntimeError, too.
        if not isinstance(error, MemoryError) and not any(sign in told for sign in SIGNS):
            raise
        raise OutOfMemory(f"memory ran out while {what}; what was made before is untouched: try {remedy}") from error


def less_for_towers(config: Config) -> str:
    """Settings with which training the towers needs about half."""
    towers = {"recency": config.retriever.recency, "sequence": config.retriever.sequence}
    halves = [f"--set retriever.{kind}.batch_size={max(1, one.batch_size // 2)}" for kind, one in towers.items()]
    sampled = max(1, config.retriever.train.sampled_items // 2)
    return " ".join([*halves, f"--set retriever.train.sampled_items={sampled}"])


def less_for_reranker(config: Config) -> str:
    """Settings with which training the reranker needs less."""
    train = config.reranker.train
    fewer = f"--set reranker.train.users_per_pass={max(1, train.users_per_pass // 2)}"
    return fewer if train.checkpointing else f"{fewer} --set reranker.train.checkpointing=true"
