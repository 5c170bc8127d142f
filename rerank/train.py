"""Listwise training of a reranker: the item taken against items not taken, easy ones first."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from rerank.adapters import RankSchedule
from rerank.best import Best, Weights, figures_from, plain
from rerank.figures import ListFigures, figures_of, list_figures
from rerank.grades import graded_figures
from rerank.lists import DrawnList, TrainingLists, batches, draw_list
from rerank.objective import Objective, graded_loss, loss_of
from rerank.packed import PackedReranker
from rerank.packing import Ids, Prompt
from rerank.progress import ProgressLine, rates
from rerank.sample import Sample, prompt_of
from rerank.schedule import hard_share, make_optimizer, set_rates
from rerank.train_config import RerankTrainConfig, autocast_type
from store.checkpoint import Checkpoints
from store.hardware import random_states, restore_random_states

SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Factors of the scores that are tried beside a prior."""
LEAST_SCALE = 0.2
"""Of scores whose model cannot be damped: with less of them it would learn too slowly."""
SCALING_LISTS = 64
"""Lists that the factor is chosen on, at most."""
SHARE_OF_A_PASS = 0.08
"""Of the budget of minutes, for one pass over a sample: before training, in between and at the end."""

Log = Callable[[Mapping[str, Any]], None]


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
        tokens: of these lists.
        minutes: wall time.
        before: validation figures before the first step; None without validation lists.
        best: the same for the weights that were kept.
        best_step: the step after which the kept weights stood; 0: training never helped, nothing changed.
        losses: training loss of each step.
    """

    stop: StopReason
    steps: int
    lists: int
    tokens: int
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
    checkpoints: Checkpoints | None = None,
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
        checkpoints: where the training is kept, and gone on with where it was killed; one that had ended is not
            done again.

    Raises:
        ValueError: when there are no examples.
        CorruptArtifact, Mismatch: when the checkpoint is damaged, or of another training.
    """
    if not len(examples):
        raise ValueError("there is nothing to learn from: no training list was given")
    on_gpu = [reranker.device] if reranker.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), ProgressLine() as progress:
        torch.manual_seed(config.seed)
        return _Training(reranker, examples, validation, config=config, log=log).run(progress, checkpoints)


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
        self.stop: StopReason | None = None
        self._judged = False  # whether the last weights were offered
        self._order: tuple[int, list[Ids]] = (-1, [])  # an epoch and its batches
        self.reserved_s = 0.0  # for the last validation, which has to fit into the budget too
        self.rng = np.random.default_rng(config.seed)
        self.ids = reranker.prompter.tokenize(examples.texts)
        self.steps = config.epochs * -(-len(examples) // config.users_per_batch)
        self.losses: list[float] = []
        self.lists = self.tokens = 0
        self.parameters = reranker.trainable()
        self.optimizer = make_optimizer(self.parameters, config)
        self.ranks = RankSchedule(reranker.backbone)
        self.autocast = autocast_type(config.precision)
        self.validation = Sample.of(validation, config.validation_lists, prompter=reranker.prompter, config=config)
        self.affordable_tokens = math.inf  # in a pass that nothing is learnt from
        self.scale = 1.0
        self.before: ListFigures | None = None
        self.best = Best(self._weights(), None)

    def run(self, progress: ProgressLine, checkpoints: Checkpoints | None) -> TrainingRecord:
        """Step through the epochs until something stops them, then put the kept weights back."""
        if checkpoints is None or not checkpoints.resume(self):
            if self.validation is not None:
                pace = self.validation.tokens_a_second(reader=self.reranker, autocast=self.autocast)
                self.affordable_tokens = SHARE_OF_A_PASS * 60 * self.config.budget_minutes * pace
                self.validation = self.validation.within(self.affordable_tokens)
            self.scale = self._scale_beside_prior()
            self.before = self._validate()
            self.best = Best(self._weights(), self.before)
        else:
            self.log({"event": "resumed", "step": len(self.losses)})
        while self.stop is None:
            self.stop = self._next_step()
            progress.show(f"step {len(self.losses)}/{self.steps}  {self._recent_loss}", progress=self._progress())
            if checkpoints is not None and self.stop is None:
                checkpoints.save_if_due(self)
        ended_between = len(self.losses) % self.config.validate_every_steps
        if self.stop in (StopReason.FINISHED, StopReason.BUDGET) and ended_between and not self._judged:
            self.best.offer(self._weights(), self._validate(), len(self.losses))
        self._restore_weights(self.best.weights)
        if checkpoints is not None:
            self._judged = True
            checkpoints.save(self)
        return self._record()

    def _next_step(self) -> StopReason | None:
        """One step and what is due after it; why there is no further one, or None."""
        if len(self.losses) == self.steps:
            return StopReason.FINISHED
        if self._elapsed_share() >= 1:
            return StopReason.BUDGET
        if not self._step(self._batch(len(self.losses))):
            return StopReason.NOT_FINITE
        done = len(self.losses)
        if done % self.config.validate_every_steps == 0:
            self.best.offer(self._weights(), self._validate(), done)
        return StopReason.PATIENCE if self.best.offers_since >= self.config.patience else None

    @property
    def _recent_loss(self) -> str:
        return f"loss {np.mean(self.losses[-20:]):.3f}" if self.losses else ""

    # --- see Resumable

    @property
    def place(self) -> str:
        """Where the training stands."""
        return f"step {len(self.losses)}"

    def faults(self) -> list[str]:
        """Weights that are not finite."""
        return [name for name, value in self.parameters.items() if not bool(value.isfinite().all())]

    def parts(self) -> dict[str, Any]:
        """Everything that a killed training needs to go on."""
        return {
            "weights": {name: value.detach() for name, value in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "ranks": self.ranks.parts(),
            "best": self.best.parts(),
            "before": plain(self.before),
            "scale": self.scale,
            "affordable_tokens": self.affordable_tokens,
            "losses": self.losses,
            "lists": self.lists,
            "tokens": self.tokens,
            "elapsed_s": time.monotonic() - self.start,
            "reserved_s": self.reserved_s,
            "stop": self.stop.value if self.stop else None,
            "judged": self._judged,
            "random": {"numpy": self.rng.bit_generator.state, **random_states(self.reranker.device)},
        }

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Goes on where `parts` were taken."""
        if parts["weights"].keys() != self.parameters.keys():
            raise ValueError("other weights are trained")
        self._restore_weights(parts["weights"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.ranks.restore(parts["ranks"])
        self.best = Best.of(parts["best"])
        self.before, self.scale = figures_from(parts["before"]), parts["scale"]
        self.affordable_tokens = parts["affordable_tokens"]
        if self.validation is not None:
            self.validation = self.validation.within(self.affordable_tokens)
        self.losses, self.reserved_s = list(parts["losses"]), parts["reserved_s"]
        self.lists, self.tokens = parts["lists"], parts["tokens"]
        self.start = time.monotonic() - parts["elapsed_s"]
        self.stop = StopReason(parts["stop"]) if parts["stop"] else None
        self._judged = parts["judged"]
        self.rng.bit_generator.state = parts["random"]["numpy"]
        restore_random_states(parts["random"], self.reranker.device)

    def _step(self, places: Ids) -> bool:
        """One batch of lists; false, and nothing changed, where loss or gradient is not finite."""
        began = time.perf_counter()
        progress = self._progress()
        share = hard_share(progress, self.config)
        drawn = [
            draw_list(self.examples, int(place), size=self.config.list_size, hard_share=share, rng=self.rng)
            for place in places
        ]
        prompter = self.reranker.prompter
        prompts = [
            prompt_of(prompter, self.ids, self.examples, int(place), made)
            for place, made in zip(places, drawn, strict=True)
        ]
        rate = set_rates(self.optimizer, progress, config=self.config)
        loss = self._backward(prompts, drawn)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            step = len(self.losses) + 1
            self.log({"event": "not finite", "step": step, "loss": str(loss), "lists": places.tolist()})
            return False
        self.optimizer.step()
        self.ranks.step(progress)
        self.losses.append(loss)
        self.lists += len(places)
        self.tokens += sum(prompt.tokens for prompt in prompts)
        self.log(
            {
                "event": "step",
                "step": len(self.losses),
                "loss": round(self.losses[-1], 5),
                "gradient_norm": round(norm.item(), 4),
                "learning_rate": rate,
                "hard_share": round(share, 3),
                **rates(prompts, time.perf_counter() - began),
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
                loss = self._loss(prompts[part], drawn[part])
                share = len(drawn[part]) / len(drawn)
                torch.autograd.backward((loss + self.ranks.penalty()) * share)
                total += loss.item() * share
        return total

    def _loss(self, prompts: Sequence[Prompt], drawn: Sequence[DrawnList]) -> torch.Tensor:
        """Mean over lists, with a graph."""
        config = self.config
        if config.objective is Objective.GRADED:
            return graded_loss(self.reranker.grade_logits(prompts, autocast=self.autocast), drawn)
        return loss_of(
            config.objective,
            self.scale * self.reranker.forward(prompts, autocast=self.autocast),  # (b, K)
            drawn,
            teacher_weight=config.teacher_weight,
            teacher_temperature=config.teacher_temperature,
        )

    def _scale_beside_prior(self) -> float:
        """By how much scores are multiplied beside a prior, so that at first they disturb it as little as they can.

        Where the head can, it is damped instead, which does not slow down what it learns afterwards.
        """
        if self.examples.prior is None:
            return 1.0
        sample = Sample.of(self.examples, SCALING_LISTS, prompter=self.reranker.prompter, config=self.config)
        if sample is None:
            return 1.0
        sample = sample.within(self.affordable_tokens)
        scores = self.reranker.score_prompts(sample.prompts, autocast=self.autocast).scores
        scale = min(SCALES, key=lambda tried: figures_of(scores, sample.lists, scale=tried).loss)
        damped = self.reranker.damp(scale)
        self.log({"event": "beside a prior", "scale": scale, "in_the_head": damped})
        return 1.0 if damped else max(scale, LEAST_SCALE)

    def _validate(self) -> ListFigures | None:
        if self.validation is None:
            return None
        began = time.monotonic()
        if self.config.objective is Objective.GRADED:
            figures = graded_figures(
                self.reranker, self.validation.prompts, self.validation.lists, autocast=self.autocast
            )
        else:
            figures = list_figures(
                self.reranker, self.validation.prompts, self.validation.lists, scale=self.scale, autocast=self.autocast
            )
        self.reserved_s = max(self.reserved_s, time.monotonic() - began)
        self.log(
            {
                "event": "validation",
                "lists": len(self.validation.lists),
                "step": len(self.losses),
                "loss": round(figures.loss, 5),
                "ndcg@10": round(figures.ndcg_10, 5),
                "elapsed_s": round(time.monotonic() - self.start, 2),
            }
        )
        return figures

    def _batch(self, step: int) -> Ids:
        """Places of the lists of a step; the order of an epoch follows from the seed and its number."""
        a_pass = -(-len(self.examples) // self.config.users_per_batch)
        epoch, place = divmod(step, a_pass)
        if self._order[0] != epoch:
            item_tokens = np.array([len(ids) + 1 for ids in self.ids], dtype=np.int64)
            recent = self.examples.histories.last(self.reranker.config.prompt.max_history_items)
            lengths = np.where(recent >= 0, item_tokens[recent], 0).sum(axis=1)
            rng = np.random.default_rng([self.config.seed, epoch])
            self._order = epoch, batches(lengths, size=self.config.users_per_batch, rng=rng)
        return self._order[1][place]

    def _elapsed_share(self) -> float:
        usable_s = 60 * self.config.budget_minutes - self.reserved_s
        return (time.monotonic() - self.start) / usable_s if usable_s > 0 else 1.0

    def _progress(self) -> float:
        """In [0, 1]: how near the end is, by steps or by the clock, whichever comes first."""
        return min(1.0, max(len(self.losses) / self.steps, self._elapsed_share()))

    def _weights(self) -> Weights:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _restore_weights(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
        self.reranker.forget()

    def _record(self) -> TrainingRecord:
        assert self.stop is not None
        record = TrainingRecord(
            stop=self.stop,
            steps=len(self.losses),
            lists=self.lists,
            tokens=self.tokens,
            minutes=(time.monotonic() - self.start) / 60,
            before=self.before,
            best=self.best.figures,
            best_step=self.best.step,
            losses=self.losses,
        )
        self.log({"event": "end", "stop": self.stop.value, "steps": record.steps, "best_step": self.best.step})
        return record
