"""Listwise training of a reranker: the item taken against items not taken, easy ones first."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from rerank.adapters import RankSchedule
from rerank.figures import ListFigures, figures_of, list_figures
from rerank.lists import DrawnList, TrainingLists, batches, draw_list
from rerank.objective import Objective, loss_of
from rerank.packed import PackedReranker
from rerank.packing import Ids, Prompt
from rerank.progress import ProgressLine

SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Factors of the scores that are tried beside a prior."""
SCALING_LISTS = 64
"""Lists that the factor is chosen on."""

Log = Callable[[Mapping[str, Any]], None]
Weights = dict[str, torch.Tensor]


class Precision(StrEnum):
    """Type of the encoder's matrix products in training."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def autocast_type(precision: Precision) -> torch.dtype | None:
    """The type that `precision` means on this processor; None for plain float32."""
    if precision is Precision.AUTO:
        # Without such instructions bfloat16 is emulated, and slower than float32. With them, 1.6 × faster.
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    return torch.bfloat16 if precision is Precision.BFLOAT16 else None


class RerankTrainConfig(BaseModel):
    """How a reranker is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(2, ge=1, description="passes over the examples, unless something stops earlier")
    budget_minutes: float = Field(4.0, gt=0, description="hard stop; the learning rate has fallen to 0 by then")
    objective: Objective = Field(
        Objective.LISTWISE, description="listwise: the item taken against the others of its list; pointwise: each alone"
    )
    users_per_batch: int = Field(8, ge=1, description="lists in one step")
    users_per_pass: int = Field(
        4, ge=1, description="lists that are in memory together; the gradients of a step's passes are added up"
    )
    checkpointing: bool = Field(
        False,
        description="compute each layer again on the way back: a fraction of the memory, a third more time",
    )
    list_size: int = Field(16, ge=2, description="items in one list, the one taken included")
    hard_share_start: float = Field(0.0, ge=0, le=1, description="share of the retriever's candidates at first")
    hard_share_end: float = Field(0.5, ge=0, le=1, description="the same after the curriculum, and in validation")
    curriculum_share: float = Field(0.5, ge=0, le=1, description="part of the training in which the share moves")
    learning_rate: float = Field(3e-4, gt=0, description="of the adapter, at its highest")
    head_learning_rate: float = Field(1e-3, gt=0, description="of the head, at its highest")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="part of the training in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, description="on matrices, decoupled")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    validate_every_steps: int = Field(100, ge=1, description="steps between two validations")
    validation_lists: int = Field(128, ge=1, description="at most so many validation lists are used, drawn once")
    patience: int = Field(5, ge=1, description="validations without a lower loss before training stops")
    teacher_weight: float = Field(
        1.0, ge=0, le=1, description="with a teacher: how much of the loss is its, against that of the item taken"
    )
    teacher_temperature: float = Field(1.0, gt=0, description="with a teacher: softens both sides before they compare")
    precision: Precision = Field(
        Precision.AUTO, description="type of the products in training; auto: bfloat16 where the processor has it"
    )
    seed: int = Field(0, ge=0, description="of the order, the negatives and the dropout")


class StopReason(StrEnum):
    """Why a training ended."""

    FINISHED = "finished"
    PATIENCE = "patience"
    BUDGET = "budget"
    NOT_FINITE = "not finite"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What happened in a training.

    Attributes:
        stop: why it ended.
        steps: steps made.
        lists: lists seen.
        minutes: wall time.
        before: validation figures before the first step; None without validation lists.
        best: the same for the weights that were kept.
        best_step: the step after which the kept weights stood; 0: training never helped, nothing changed.
        losses: training loss of each step.
    """

    stop: StopReason
    steps: int
    lists: int
    minutes: float
    before: ListFigures | None
    best: ListFigures | None
    best_step: int
    losses: list[float] = field(repr=False)


def train_reranker(
    reranker: PackedReranker[Any],
    examples: TrainingLists,
    *,
    validation: TrainingLists | None,
    config: RerankTrainConfig,
    log: Log,
) -> TrainingRecord:
    """Train in place; the weights of the lowest validation loss are kept, those before training included.

    Each list is scored packed; see `Objective` for the loss. May be called again, to go on with harder lists. One
    seed gives one result unless the budget of minutes binds.

    Args:
        reranker: is changed.
        examples: to learn from.
        validation: to choose the weights and to stop; None keeps the last finite ones.
        config: see `RerankTrainConfig`.
        log: gets a JSON-able record for every step, every validation and the end.

    Raises:
        ValueError: when there are no examples.
    """
    if not len(examples):
        raise ValueError("there is nothing to learn from: no training list was given")
    with torch.random.fork_rng(devices=[]), ProgressLine() as progress:
        torch.manual_seed(config.seed)
        return _Training(reranker, examples, validation, config=config, log=log).run(progress)


class _Best:
    """The weights of the lowest validation loss; without validation, the last ones offered."""

    def __init__(self, weights: Weights, figures: ListFigures | None) -> None:
        self.weights, self.figures = weights, figures
        self.step = 0
        self.offers_since = 0

    def offer(self, weights: Weights, figures: ListFigures | None, step: int) -> None:
        """Keep these instead if they are better."""
        self.offers_since += 1
        if figures is None or self.figures is None or figures.loss < self.figures.loss:
            self.weights, self.figures, self.step, self.offers_since = weights, figures, step, 0


class _Training:
    """One run of `train_reranker`."""

    def __init__(
        self,
        reranker: PackedReranker[Any],
        examples: TrainingLists,
        validation: TrainingLists | None,
        *,
        config: RerankTrainConfig,
        log: Log,
    ) -> None:
        self.reranker, self.examples, self.config, self.log = reranker, examples, config, log
        self.start = time.monotonic()
        self.reserved_s = 0.0  # for the last validation, which has to fit into the budget too
        self.rng = np.random.default_rng(config.seed)
        self.ids = reranker.prompter.tokenize(examples.texts)
        self.steps = config.epochs * -(-len(examples) // config.users_per_batch)
        self.losses: list[float] = []
        self.lists = 0
        self.parameters = reranker.trainable()
        self.optimizer = make_optimizer(self.parameters, config)
        self.ranks = RankSchedule(reranker.backbone)
        self.autocast = autocast_type(config.precision)
        self.validation = self._drawn_once(validation, config.validation_lists)
        self.scale = self._scale_beside_prior()

    def run(self, progress: ProgressLine) -> TrainingRecord:
        """Step through the epochs until something stops them, then put the kept weights back."""
        before = self._validate()
        best = _Best(self._weights(), before)
        stop = StopReason.FINISHED
        for places in self._all_batches():
            if self._elapsed_share() >= 1:
                stop = StopReason.BUDGET
                break
            if not self._step(places):
                stop = StopReason.NOT_FINITE
                break
            done = len(self.losses)
            progress.show(f"step {done}/{self.steps}  loss {np.mean(self.losses[-20:]):.3f}", progress=self._progress())
            if done % self.config.validate_every_steps == 0:
                best.offer(self._weights(), self._validate(), done)
            if best.offers_since >= self.config.patience:
                stop = StopReason.PATIENCE
                break
        if stop in (StopReason.FINISHED, StopReason.BUDGET) and len(self.losses) % self.config.validate_every_steps:
            best.offer(self._weights(), self._validate(), len(self.losses))
        self._restore(best.weights)
        return self._record(stop, before, best)

    def _step(self, places: Ids) -> bool:
        """One batch of lists; false, and nothing changed, where loss or gradient is not finite."""
        progress = self._progress()
        share = hard_share(progress, self.config)
        drawn = [
            draw_list(self.examples, int(place), size=self.config.list_size, hard_share=share, rng=self.rng)
            for place in places
        ]
        prompts = [
            self._prompt(self.ids, self.examples, place, made) for place, made in zip(places, drawn, strict=True)
        ]
        rate = set_rates(self.optimizer, progress, config=self.config)
        loss = self._backward(prompts, drawn)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            self.log({"event": "not finite", "step": len(self.losses) + 1, "loss": str(loss)})
            return False
        self.optimizer.step()
        self.ranks.step(progress)
        self.losses.append(loss)
        self.lists += len(places)
        self.log(
            {
                "event": "step",
                "step": len(self.losses),
                "loss": round(self.losses[-1], 5),
                "gradient_norm": round(norm.item(), 4),
                "learning_rate": rate,
                "hard_share": round(share, 3),
                "elapsed_s": round(time.monotonic() - self.start, 2),
            }
        )
        return True

    def _backward(self, prompts: Sequence[Prompt], drawn: Sequence[DrawnList]) -> float:
        """Leaves the gradient of the step's mean loss in the parameters, and returns the loss."""
        config, at_once = self.config, self.config.users_per_pass
        self.optimizer.zero_grad()
        total = 0.0
        with self.reranker.training(checkpointing=config.checkpointing):
            for start in range(0, len(prompts), at_once):
                part = slice(start, start + at_once)
                scores = self.reranker.forward(prompts[part], autocast=self.autocast)  # (b, K)
                loss = loss_of(
                    config.objective,
                    self.scale * scores,
                    drawn[part],
                    teacher_weight=config.teacher_weight,
                    teacher_temperature=config.teacher_temperature,
                )
                share = len(drawn[part]) / len(drawn)
                torch.autograd.backward((loss + self.ranks.penalty()) * share)
                total += loss.item() * share
        return total

    def _prompt(self, ids: Sequence[Ids], lists: TrainingLists, place: int, drawn: DrawnList) -> Prompt:
        history = [ids[row] for row in lists.histories[place].tolist()]
        return self.reranker.prompter.prompt(history, [ids[row] for row in drawn.item_rows.tolist()])

    def _drawn_once(self, lists: TrainingLists | None, most: int) -> tuple[list[Prompt], list[DrawnList]] | None:
        """At most so many lists that hold their target, always the same; None where there are none."""
        if lists is None or not len(lists.found if lists.scored else lists):
            return None
        rng = np.random.default_rng(self.config.seed + 1)
        if lists.scored:
            lists = lists.take(lists.found)
        lists = lists.take(np.sort(rng.permutation(len(lists))[:most]))
        size, share = self.config.list_size, self.config.hard_share_end
        drawn = [draw_list(lists, place, size=size, hard_share=share, rng=rng) for place in range(len(lists))]
        ids = self.reranker.prompter.tokenize(lists.texts)
        prompts = [self._prompt(ids, lists, place, made) for place, made in enumerate(drawn)]
        return prompts, drawn

    def _scale_beside_prior(self) -> float:
        """By how much scores are multiplied beside a prior, so that at first they disturb it as little as they can."""
        if self.examples.prior is None or (sample := self._drawn_once(self.examples, SCALING_LISTS)) is None:
            return 1.0
        prompts, drawn = sample
        scores = self.reranker.score_prompts(prompts, autocast=self.autocast).scores
        scale = min(SCALES, key=lambda tried: figures_of(scores, drawn, scale=tried).loss)
        self.log({"event": "scale", "beside_prior": scale})
        return scale

    def _validate(self) -> ListFigures | None:
        if self.validation is None:
            return None
        began = time.monotonic()
        figures = list_figures(self.reranker, *self.validation, scale=self.scale, autocast=self.autocast)
        self.reserved_s = max(self.reserved_s, time.monotonic() - began)
        self.log(
            {
                "event": "validation",
                "step": len(self.losses),
                "loss": round(figures.loss, 5),
                "ndcg@10": round(figures.ndcg_10, 5),
                "elapsed_s": round(time.monotonic() - self.start, 2),
            }
        )
        return figures

    def _all_batches(self) -> Iterator[Ids]:
        histories = self.examples.histories
        item_tokens = np.array([len(ids) + 1 for ids in self.ids], dtype=np.int64)
        recent = histories.last(self.reranker.config.prompt.max_history_items)
        lengths = np.where(recent >= 0, item_tokens[recent], 0).sum(axis=1)
        for _ in range(self.config.epochs):
            yield from batches(lengths, size=self.config.users_per_batch, rng=self.rng)

    def _elapsed_share(self) -> float:
        usable_s = 60 * self.config.budget_minutes - self.reserved_s
        return (time.monotonic() - self.start) / usable_s if usable_s > 0 else 1.0

    def _progress(self) -> float:
        """In [0, 1]: how near the end is, by steps or by the clock, whichever comes first."""
        return min(1.0, max(len(self.losses) / self.steps, self._elapsed_share()))

    def _weights(self) -> Weights:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _restore(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
        self.reranker.forget()

    def _record(self, stop: StopReason, before: ListFigures | None, best: _Best) -> TrainingRecord:
        minutes = (time.monotonic() - self.start) / 60
        record = TrainingRecord(
            stop=stop,
            steps=len(self.losses),
            lists=self.lists,
            minutes=minutes,
            before=before,
            best=best.figures,
            best_step=best.step,
            losses=self.losses,
        )
        self.log({"event": "end", "stop": stop.value, "steps": record.steps, "best_step": best.step})
        return record


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
