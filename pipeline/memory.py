"""Memory that ran out, told with the setting that would fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

from config import Config
from recommend.recommender import Recommender
from rerank.packed import PackedReranker
from retrieval.finetune import FinetuneMethod
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


def less_for_reading(config: Config) -> str:
    """Settings with which reading the catalog needs about half."""
    return _told(_halves(config, ["retriever.encoder.batch_size"]))


def less_for_towers(config: Config) -> str:
    """Settings with which training the towers needs about half, and tuning the text encoder where it is tuned."""
    retriever = config.retriever
    names = [f"retriever.{kind}.batch_size" for kind in retriever.towers]
    if retriever.text.copies:
        names.append("retriever.text.most_positions")
    names.append("retriever.train.sampled_items")
    if retriever.finetune.method is not FinetuneMethod.FROZEN:
        names += ["retriever.finetune.chunk_texts", "retriever.finetune.positions"]
    return _told(_halves(config, names))


def less_for_reranker(config: Config, kind: str) -> str:
    """Settings with which training the reranker needs less, and scoring with it on validation.

    Args:
        kind: of the model, encoder or decoder.
    """
    options = _halves(config, ["reranker.train.users_per_pass"])
    if not config.reranker.train.checkpointing:
        options.append("--set reranker.train.checkpointing=true")
    if not options:
        options = _halves(config, ["reranker.train.list_size"], least=2)
    return _told([*options, *_smaller_batches(config, kind)])


def less_for_index(config: Config) -> str:
    """Settings with which building the index needs less: one kind alone, of halved vectors."""
    wanted = {"kind": "flat", "storage": "float16"}
    found = {name: str(getattr(config.index, name)) for name in wanted}
    return _told([f"--set index.{name}={value}" for name, value in wanted.items() if found[name] != value])


def less_for_lists(config: Config, recommender: Recommender, *options: str) -> str:
    """Options with which lists need less, and what to train the reranker anew with, since it keeps its batches.

    Args:
        options: of the command at hand.
    """
    reranker = recommender.second.reranker if recommender.second is not None else None
    batches = _smaller_batches(config, reranker.kind) if isinstance(reranker, PackedReranker) else []
    anew = [f"'train-reranker {' '.join(batches)}' and again"] if batches else []
    return _told([*options, *anew], joint=", or ")


def _smaller_batches(config: Config, kind: str) -> list[str]:
    return _halves(config, [f"reranker.{kind}.max_batch_tokens"], least=64)


def _halves(config: Config, names: Sequence[str], *, least: int = 1) -> list[str]:
    """Options that halve these settings, without those that are at their least already."""
    options = []
    for name in names:
        value: Any = reduce(getattr, name.split("."), config)
        if value > least:
            options.append(f"--set {name}={max(least, value // 2)}")
    return options


def _told(options: Sequence[str], *, joint: str = " ") -> str:
    return joint.join(options) or "a smaller model, or a machine with more memory"
