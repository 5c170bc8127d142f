"""Tuning of the text encoder against the whole catalog, by the gradient of its table of vectors.

Gradient caching (Gao et al. 2021) for a table that every training position shares: one pass over the
positions gives the gradient of the loss with respect to all N text vectors; the encoder then takes that
gradient chunk by chunk, so that only one chunk's activations are ever held. With one step for all chunks
the gradient is that of the plain loss, the catalog's mean taken as constant; with a step for each chunk,
later chunks see a gradient that is stale by the steps before them.
"""

import warnings
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from data.schema import Scores
from retrieval.loss import full_softmax_loss
from retrieval.towers import TwoTowers
from retrieval.train import Log, Positions


class FinetuneMethod(StrEnum):
    """Which weights of the text encoder are tuned."""

    FROZEN = "frozen"
    LORA = "lora"
    FULL = "full"


class FinetuneConfig(BaseModel):
    """Tuning of the text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FinetuneMethod = Field(FinetuneMethod.FROZEN, description="frozen, lora or full")
    rounds: int = Field(1, ge=1, description="table gradients taken, each followed by a pass over the catalog")
    learning_rate: float = Field(2e-4, gt=0, description="of the encoder")
    chunk_texts: int = Field(64, ge=1, description="texts whose activations are held at a time")
    step_every_chunk: bool = Field(True, description="step after each chunk (stale) rather than once a round (exact)")
    positions: int = Field(100_000, ge=1, description="training positions that a table gradient is taken over, at most")
    lora_rank: int = Field(16, ge=1, description="rank of the LoRA adapters")
    seed: int = Field(0, description="of adapters, the order of texts and the choice of positions")


def add_adapter(encoder: Any, config: FinetuneConfig) -> None:
    """Makes the encoder trainable by the configured method, in place."""
    torch.manual_seed(config.seed)
    inner = encoder[0].model.float()
    if config.method is FinetuneMethod.FULL:
        inner.requires_grad_(True)
        return
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear", lora_dropout=0.0
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute that has been renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        encoder[0].model = get_peft_model(inner, lora)


def merge_adapter(encoder: Any) -> None:
    """Folds LoRA weights into the encoder, which is then a plain sentence-transformer again."""
    if hasattr(encoder[0].model, "merge_and_unload"):
        encoder[0].model = encoder[0].model.merge_and_unload()


def table_gradient(model: TwoTowers, positions: Positions, *, warm: np.ndarray, batch_size: int) -> Tensor:
    """(N, E): gradient of the mean full-softmax loss over all positions with respect to the text vectors.

    Args:
        warm: item rows that the softmax runs over; every target is among them.
    """
    model.eval()
    place = np.full(len(model.text), -1, dtype=np.int64)
    place[warm] = np.arange(len(warm))
    frozen = model.text
    table = frozen.clone().requires_grad_(True)
    model.text = table
    try:
        for start in range(0, len(positions), batch_size):
            context = torch.from_numpy(positions.context[start : start + batch_size].astype(np.int64))
            target = torch.from_numpy(place[positions.target[start : start + batch_size]])
            loss = full_softmax_loss(model.logits(context, torch.from_numpy(warm)), target)
            share = len(target) / len(positions)
            (gradient,) = torch.autograd.grad(loss * share, table)
            table.grad = gradient if table.grad is None else table.grad + gradient
    finally:
        model.text = frozen
    return torch.zeros_like(frozen) if table.grad is None else table.grad


def finetune_round(
    encoder: Any, texts: Sequence[str], gradient: Tensor, *, mean: Scores, config: FinetuneConfig, log: Log
) -> None:
    """Carries a table gradient (N, E) back through the encoder, in place.

    Args:
        mean: (E,) the catalog's mean vector, by which the table was centred.
    """
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate)
    order = np.random.default_rng(config.seed).permutation(len(texts))
    centre = torch.from_numpy(mean)
    # The table gradient shrinks with the catalog; AdamW only needs its direction, so chunks are weighed alike.
    scale = 1.0 / gradient.norm(dim=1).mean().clamp(min=1e-12)
    # Dropout stays off: the table was encoded without, so its gradient belongs to that function.
    encoder.eval()
    for start in range(0, len(texts), config.chunk_texts):
        rows = order[start : start + config.chunk_texts]
        features = encoder.preprocess([texts[row] for row in rows])
        on_device = {name: value.to(encoder.device) for name, value in features.items() if torch.is_tensor(value)}
        vectors = F.normalize(encoder({**features, **on_device})["sentence_embedding"].float().cpu(), dim=1)
        centred = F.normalize(vectors - centre, dim=1)
        (centred * gradient[torch.from_numpy(rows)] * scale).sum().backward()
        if config.step_every_chunk or start + config.chunk_texts >= len(texts):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (start // config.chunk_texts) % 50 == 0:
            log({"stage": "finetune", "texts": min(start + config.chunk_texts, len(texts)), "of": len(texts)})
