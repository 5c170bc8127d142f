"""What changes in the course of a training: the share of hard negatives and the learning rates."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from rerank.train_config import RerankTrainConfig


def hard_share(progress: float, config: RerankTrainConfig) -> float:
    """The share of hard negatives when `progress` in [0, 1] of the training is behind."""
    reached = min(1.0, progress / config.curriculum_share) if config.curriculum_share else 1.0
    return config.hard_share_start + reached * (config.hard_share_end - config.hard_share_start)


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: RerankTrainConfig) -> torch.optim.Optimizer:
    """AdamW with the adapter's and the head's own rates; vectors and scalars do not decay."""
    groups: list[dict[str, Any]] = []
    for name, value in parameters.items():
        rate = config.head_learning_rate if name.startswith("head.") else config.learning_rate
        decay = config.weight_decay if value.ndim >= 2 else 0.0
        groups.append({"params": [value], "lr": rate, "highest": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def set_rates(optimizer: torch.optim.Optimizer, progress: float, *, config: RerankTrainConfig) -> float:
    """Linear rise over the warm-up, then half a cosine to 0; returns the adapter's rate."""
    warmup = config.warmup_share
    if progress < warmup:
        factor = max(progress / warmup, 0.02)  # a rate of exactly 0 would waste the first step
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * factor
    return config.learning_rate * factor
