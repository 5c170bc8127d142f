"""Training of the towers: every position of every history predicts the item that came next."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from data.schema import NO_ITEM, Histories, Holdout, Rows
from retrieval.loss import full_softmax_loss, sampled_softmax_loss
from retrieval.towers import TwoTowers
from retrieval.validation import next_item_ndcg10
from store.errors import TandemError

Log = Callable[[dict[str, Any]], None]

FULL_SOFTMAX_ITEMS = 30_000
"""Up to this many trained items the softmax runs over all of them; beyond, over a sample."""


class TrainConfig(BaseModel):
    """How the towers are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(8, ge=0, description="passes over all positions, at most")
    patience: int = Field(2, ge=1, description="epochs without a better validation NDCG@10 before stopping")
    batch_size: int = Field(512, ge=1, description="positions in one step")
    learning_rate: float = Field(2e-3, gt=0, description="largest learning rate, after warm-up")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the rate rises")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay")
    sampled_items: int = Field(4096, ge=1, description="items drawn for each step where the softmax is sampled")
    validation_users: int = Field(5000, ge=1, description="users of group B that early stopping looks at")
    budget_minutes: float = Field(60.0, gt=0, description="training stops at the end of the step that crosses it")
    seed: int = Field(0, description="of initial weights, order and dropout")


class NotFinite(TandemError):
    """Training met a loss, a weight or a score that is NaN or infinite."""

    exit_code = 12


@dataclass(frozen=True)
class TrainRecord:
    """What a training did: one dict an epoch, the best epoch's validation NDCG@10, and the seconds it took."""

    epochs: list[dict[str, Any]]
    best_epoch: int
    best_ndcg10: float
    seconds: float
    stopped: str


@dataclass(frozen=True)
class Positions:
    """Training examples: (n, H) int32 items before, most recent first, and (n,) int64 the item that came next."""

    context: np.ndarray
    target: Rows

    @classmethod
    def of(cls, train: Histories, history_items: int) -> "Positions":
        """Every place of every list but the first."""
        place = np.arange(len(train.item_rows)) - np.repeat(train.offsets[:-1], train.lengths)
        entries = np.nonzero(place >= 1)[0]
        context = np.full((len(entries), history_items), NO_ITEM, dtype=np.int32)
        for step in range(1, history_items + 1):
            inside = place[entries] >= step
            context[inside, step - 1] = train.item_rows[entries[inside] - step]
        return cls(context, train.item_rows[entries])

    def __len__(self) -> int:
        return len(self.target)


def train_towers(
    model: TwoTowers,
    train: Histories,
    validation: Holdout,
    *,
    config: TrainConfig,
    log: Log,
    stop_after: int | None = None,
) -> TrainRecord:
    """Trains in place and leaves the weights of the best epoch.

    Args:
        validation: users of group B only; early stopping and nothing else looks at it. Without users,
            the last epoch is kept.
        stop_after: run this many epochs of the same learning-rate schedule, for a fit without validation.

    Raises:
        NotFinite: when loss, weights or validation scores turn NaN or infinite; the model then holds the
            best epoch so far.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    positions = Positions.of(train, model.config.history_items)
    counts = np.bincount(train.item_rows, minlength=len(model.text))
    objective = _Objective(model, counts, config, rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = _schedule(optimizer, config, steps=config.epochs * -(-len(positions) // config.batch_size))
    # A generator of its own: the order of training must not depend on who is there for validation.
    users = np.random.default_rng(config.seed).permutation(len(validation))[: config.validation_users]
    asked = validation.take(np.sort(users))
    progress = _Progress(model, config)
    planned = config.epochs if stop_after is None else stop_after
    for epoch in range(planned if len(positions) else 0):
        cuts = range(config.batch_size, len(positions), config.batch_size)
        batches = np.split(rng.permutation(len(positions)), cuts)
        try:
            loss = _train_epoch(
                objective, positions, batches, optimizer=optimizer, schedule=schedule, progress=progress
            )
            model.settle_cold_items(torch.from_numpy(counts))
            progress.end_epoch(model, asked, loss=loss, log=log)
        except FloatingPointError as fault:
            model.load_state_dict(progress.weights)
            raise NotFinite(
                f"the retriever diverged in epoch {epoch + 1}, {fault}: lower retriever.train.learning_rate "
                f"(now {config.learning_rate})"
            ) from fault
        if progress.stop():
            break
    model.load_state_dict(progress.weights)
    model.settle_cold_items(torch.from_numpy(counts))
    return TrainRecord(
        progress.epochs, progress.best_epoch, progress.best, progress.minutes * 60, progress.stopped or "all epochs"
    )


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Rises over the warm-up, then falls to almost nothing; good for one step more than are taken."""
    total = max(steps, 1) + 1
    # OneCycleLR divides by the steps of the warm-up less one.
    warmup_share = config.warmup_share if config.warmup_share * total != 1 else 1.5 / total
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=total, pct_start=max(warmup_share, 1e-6)
    )


def _train_epoch(
    objective: "_Objective",
    positions: Positions,
    batches: list[np.ndarray],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    progress: "_Progress",
) -> float:
    """One pass, or what the budget leaves of it; returns the mean loss, raises FloatingPointError if not finite."""
    objective.model.train()
    losses: list[float] = []
    for step, chosen in enumerate(batches, start=1):
        loss = objective(positions.context[chosen], positions.target[chosen])
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step} of {len(batches)}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress.over_budget:
            break
    if not all(bool(weight.isfinite().all()) for weight in objective.model.parameters()):
        raise FloatingPointError(f"a weight is NaN or infinite after step {len(losses)} of {len(batches)}")
    return float(np.mean(losses))


def validation_ndcg10(model: TwoTowers, asked: Holdout) -> float:
    """NDCG@10 of the towers alone for the next item of each user."""
    items = model.item_vectors()

    def scores(histories: Histories) -> np.ndarray:
        return model.user_vectors(histories.last(model.config.history_items)) @ items.T

    return next_item_ndcg10(scores, asked, n_items=len(items))


class _Objective:
    """The loss of one batch, over all trained items or over a sample of them."""

    def __init__(self, model: TwoTowers, counts: Rows, config: TrainConfig, rng: np.random.Generator) -> None:
        self.model, self.rng = model, rng
        # An item without a training interaction is never a target: left in, the softmax would push it away.
        self.warm = np.nonzero(counts)[0]
        self.place = np.full(len(counts), -1, dtype=np.int64)
        self.place[self.warm] = np.arange(len(self.warm))
        self.sampled_items = 0 if len(self.warm) <= FULL_SOFTMAX_ITEMS else config.sampled_items
        share = counts[self.warm].astype(np.float64) ** 0.75
        self.probability = share / share.sum()

    def __call__(self, context: np.ndarray, target: Rows) -> Tensor:
        history = torch.from_numpy(context.astype(np.int64))
        if not self.sampled_items:
            logits = self.model.logits(history, torch.from_numpy(self.warm))  # (B, N warm)
            return full_softmax_loss(logits, torch.from_numpy(self.place[target]))
        drawn = self.rng.choice(len(self.warm), self.sampled_items, p=self.probability)
        drawn_rows = self.warm[drawn]
        logits = self.model.logits(history, torch.from_numpy(np.concatenate([drawn_rows, target])))
        sampled, own = logits[:, : len(drawn)], logits[:, len(drawn) :]
        expected = torch.from_numpy(self.probability[drawn] * self.sampled_items).float()
        accidental = torch.from_numpy(drawn_rows[None, :] == target[:, None])
        return sampled_softmax_loss(own.diagonal(), sampled, log_expected=expected.log(), accidental=accidental)


class _Progress:
    """Epochs so far, the best weights, and whether to go on."""

    def __init__(self, model: TwoTowers, config: TrainConfig) -> None:
        self.config, self.started = config, time.monotonic()
        self.best, self.weights = -1.0, deepcopy(model.state_dict())
        self.epochs: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.stopped = ""

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    @property
    def over_budget(self) -> bool:
        return self.minutes > self.config.budget_minutes

    def end_epoch(self, model: TwoTowers, asked: Holdout, *, loss: float, log: Log) -> None:
        ndcg10 = validation_ndcg10(model, asked)
        entry = {
            "stage": "towers",
            "epoch": len(self.epochs) + 1,
            "loss": round(loss, 4),
            # A final fit asks nobody: a figure of 0 would look like a result.
            **({"validation_ndcg@10": round(ndcg10, 5)} if len(asked) else {}),
            "minutes": round(self.minutes, 2),
        }
        self.epochs.append(entry)
        log(entry)
        if ndcg10 > self.best or not len(asked):
            self.best, self.weights, self.best_epoch = ndcg10, deepcopy(model.state_dict()), len(self.epochs)

    def stop(self) -> bool:
        if self.over_budget:
            self.stopped = f"budget of {self.config.budget_minutes:g} minutes"
        elif len(self.epochs) - self.best_epoch >= self.config.patience:
            self.stopped = f"no better validation NDCG@10 for {self.config.patience} epochs"
        return bool(self.stopped)
