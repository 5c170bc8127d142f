"""The language model under a reranker, read, checked against what is asked of it, and frozen."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from rerank.layers import keep_layers
from rerank.prompt import PromptConfig
from store.errors import BadInput, CorruptArtifact


def frozen_backbone(
    read: Callable[[], Any],
    model_dir: Path,
    *,
    model_types: Collection[str],
    prompt: PromptConfig,
    layers: int | None,
) -> Any:
    """What `read` gives of `model_dir`, with `layers` of its layers.

    Raises:
        BadInput: when the model is of another type, or its positions are too few for the prompts.
        CorruptArtifact: when it cannot be read.
    """
    try:
        with without_progress_bars():
            backbone = read()
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptArtifact(f"the model in {model_dir} cannot be read: {error}") from error
    if backbone.config.model_type not in model_types:
        raise BadInput(
            f"the model in {model_dir.name} is of type {backbone.config.model_type!r}; a reranker of this kind needs"
            f" one of {', '.join(sorted(model_types))}"
        )
    need, there = prompt.max_history_tokens + prompt.max_candidate_tokens, backbone.config.max_position_embeddings
    if need > there:
        raise BadInput(
            f"max_history_tokens + max_candidate_tokens is {need}, but the model in {model_dir.name} has {there}"
            " positions: lower one of the two"
        )
    if layers is not None:
        keep_layers(backbone, layers)
    return backbone.requires_grad_(False)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars inside the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
