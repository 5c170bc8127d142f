"""Tuning of the text encoder against the whole catalog, a round at a time; see rounds for what becomes of them.

Two schedules (see gradient_cache). *Exact*: every step reads the whole catalog, and steps encoder and towers
together by the gradient of the plain loss. *Stale*: one gradient of the loss with respect to all text vectors,
then one pass over the texts with an encoder step after each chunk. The first step of a pass goes by the gradient
of the plain loss as far as its chunk has a part in it; the last of the N / chunk_texts steps by one that is as
many steps old. A pass reads the catalog with a graph once, whatever the number of its steps.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from data.schema import Histories, Scores
from retrieval.encode import EncoderConfig, TextSpace, encode_texts
from retrieval.examples import Examples
from retrieval.gradient_cache import CatalogEncoder, LossParts, cached_backward, read_by_towers, vector_gradient
from retrieval.objective import Objective
from retrieval.towers import TwoTowers
from retrieval.trackers import Log, RemainingTime
from retrieval.train import TrainConfig, target_counts
from store.errors import NotFinite
from store.hardware import Precision, computes_bfloat16, device

EXACT_ITEMS = 1_000
"""Without a GPU, `auto` takes exact steps up to this many items; each step reads all of them twice."""


class FinetuneMethod(StrEnum):
    """Which weights of the text encoder are tuned."""

    FROZEN = "frozen"
    LORA = "lora"
    FULL = "full"


class Schedule(StrEnum):
    """How old the gradient may be that the encoder is stepped by; see the head of this file."""

    AUTO = "auto"
    EXACT = "exact"
    STALE = "stale"


class FinetuneConfig(BaseModel):
    """Tuning of the text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FinetuneMethod = Field(FinetuneMethod.FROZEN, description="frozen, lora or full")
    schedule: Schedule = Field(
        Schedule.AUTO, description=f"exact, stale, or auto: exact on a GPU and up to {EXACT_ITEMS} items, else stale"
    )
    rounds: int = Field(1, ge=1, description="rounds of tuning; the best by validation is kept, or the frozen encoder")
    learning_rate: float = Field(5e-5, gt=0, description="of the encoder, falling to 0 within a round")
    tower_learning_rate: float = Field(5e-4, gt=0, description="of the towers beside it, in exact steps")
    chunk_texts: int = Field(64, ge=1, description="texts whose activations are held at a time")
    exact_steps: int = Field(10, ge=1, description="steps in a round of exact ones")
    positions: int = Field(100_000, ge=1, description="training positions that one gradient is taken over, about")
    dropout: bool = Field(False, description="leave the encoder's own dropout on in exact steps")
    precision: Precision = Field(Precision.AUTO, description="of the encoder's matrix products while it is tuned")
    lora_rank: int = Field(16, ge=1, description="rank of the LoRA adapters")
    budget_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="of retriever.train.budget_minutes, for all rounds and the towers that judge them, in equal parts; "
        "reading the catalog after a round comes on top",
    )
    seed: int = Field(0, ge=0, description="of adapters, dropout, the order of texts and the choice of positions")

    def schedule_for(self, n_items: int) -> Schedule:
        """Exact or stale, for a catalog of this size on this machine."""
        if self.schedule is not Schedule.AUTO:
            return self.schedule
        affordable = torch.cuda.is_available() or n_items <= EXACT_ITEMS
        return Schedule.EXACT if affordable else Schedule.STALE


class EncoderTuner:
    """Tunes a sentence-transformer, round by round, by what the towers above it would have of its vectors.

    Args:
        encoder: a SentenceTransformer, made trainable here by the configured method.
        texts: N item texts.
        training: settings of the loss.
        reading: settings by which the whole catalog is encoded.
        whiten: what the towers read of the vectors is whitened, as of the beginning of a round, besides being centred.
        topics: (N, K) what the towers read beside it; None: nothing.
        table: what the towers read, made of the vectors (N, E), differentiable; None: as these two say.
        say: is told from time to time how long a round will take.
    """

    def __init__(
        self,
        encoder: Any,
        texts: Sequence[str],
        *,
        config: FinetuneConfig,
        training: TrainConfig,
        reading: EncoderConfig,
        log: Log,
        whiten: bool = False,
        topics: Scores | None = None,
        table: Callable[[Tensor], Tensor] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        add_adapter(encoder, config)
        self.config, self.training, self.reading, self.log = config, training, reading, log
        self.whiten, self.topics, self._given_table, self.say = whiten, topics, table, say
        self.catalog = CatalogEncoder(encoder, texts, config.chunk_texts, computes_bfloat16(config.precision))

    def round(
        self,
        towers: TwoTowers,
        train: Histories,
        text_vectors: Scores,
        *,
        number: int,
        budget_minutes: float = math.inf,
    ) -> Scores:
        """The catalog's vectors (N, E) after one more round; the towers are left as they are.

        Args:
            text_vectors: (N, E) of length 1, by the encoder as it is now.
            number: of the round, from 1; each takes other positions, and the texts in another order.
            budget_minutes: after which no further step is begun; the rate falls in time.

        Raises:
            NotFinite: when a loss or a weight turns NaN or infinite.
        """
        rng = np.random.default_rng([self.config.seed, number])
        schedule = self.config.schedule_for(len(text_vectors))
        towers = deepcopy(towers).to(device())
        table = self._table(text_vectors)
        pace = _Pace(budget_minutes, f"tuning the text encoder, round {number}", self.say)
        losses = _Losses(towers, train, training=self.training, positions=self.config.positions, rng=rng)
        try:
            if schedule is Schedule.EXACT:
                self._exact_steps(towers, losses, table, rng=rng, pace=pace)
            else:
                self._stale_pass(towers, losses, text_vectors, table, rng=rng, pace=pace)
        except FloatingPointError as fault:
            raise NotFinite(
                f"the text encoder diverged in round {number}, {fault}: lower retriever.finetune.learning_rate "
                f"(now {self.config.learning_rate:g})"
            ) from fault
        self.catalog.model.eval()
        with torch.autocast(self.catalog.model.device.type, torch.bfloat16, enabled=self.catalog.bfloat16):
            return encode_texts(self.catalog.model, self.catalog.texts, self.reading)

    def _table(self, text_vectors: Scores) -> Callable[[Tensor], Tensor]:
        """What the towers read, made of the vectors (N, E), where these begin as `text_vectors`."""
        if self._given_table is not None:
            return self._given_table
        whitening = TextSpace.of(text_vectors, whiten=self.whiten).whitening
        return partial(
            read_by_towers,
            whitening=None if whitening is None else torch.from_numpy(whitening).to(device()),
            topics=None if self.topics is None else torch.from_numpy(self.topics).to(device()),
        )

    def weights(self) -> list[Tensor]:
        """A copy of all that is tuned."""
        return [weight.detach().clone() for weight in _trainable(self.catalog.model)]

    def take(self, weights: Sequence[Tensor]) -> None:
        """Goes on from these `weights()`."""
        with torch.no_grad():
            for weight, kept in zip(_trainable(self.catalog.model), weights, strict=True):
                weight.copy_(kept)

    def finished(self, weights: Sequence[Tensor]) -> Any:
        """The encoder with these `weights()`, as a plain sentence-transformer; the tuner's work ends here."""
        self.take(weights)
        merge_adapter(self.catalog.model)
        return self.catalog.model

    def _exact_steps(
        self,
        towers: TwoTowers,
        losses: "_Losses",
        table: Callable[[Tensor], Tensor],
        *,
        rng: np.random.Generator,
        pace: "_Pace",
    ) -> None:
        config, weights = self.config, _trainable(self.catalog.model)
        # In a large catalog few ids are in a sample, and gradients are sparse: what is learned for ids stays.
        for weight in towers.sparse_weights():
            weight.requires_grad_(False)
        groups = [
            {"params": weights, "lr": config.learning_rate},
            {"params": _trainable(towers), "lr": config.tower_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = pace.falling(optimizer, config.exact_steps)
        self.catalog.model.train(config.dropout)
        towers.train()
        for step in range(1, config.exact_steps + 1):
            loss = cached_backward(self.catalog, losses.drawn(), seed=int(rng.integers(2**32)), table=table)
            self._step(optimizer, schedule, step=step, of=config.exact_steps, loss=loss)
            if pace.is_over(step):
                break
        _require_finite(weights)

    def _stale_pass(
        self,
        towers: TwoTowers,
        losses: "_Losses",
        text_vectors: Scores,
        table: Callable[[Tensor], Tensor],
        *,
        rng: np.random.Generator,
        pace: "_Pace",
    ) -> None:
        # Dropout stays off: the table is encoded without, so its gradient belongs to that function.
        self.catalog.model.eval()
        towers.eval().requires_grad_(False)
        vectors = torch.from_numpy(text_vectors).to(towers.text.device)
        loss, gradient = vector_gradient(vectors, losses.drawn(), table=table)
        # The gradient shrinks with the catalog; AdamW needs its direction only, and has an epsilon beside it.
        gradient = gradient / gradient.norm(dim=1).mean().clamp(min=1e-12)
        chunks = [rows for rows in self.catalog.chunks if bool(gradient[torch.from_numpy(rows)].any())]
        optimizer = torch.optim.AdamW(_trainable(self.catalog.model), lr=self.config.learning_rate)
        schedule = pace.falling(optimizer, len(chunks))
        for step, place in enumerate(rng.permutation(len(chunks)), start=1):
            self.catalog.carry_back_chunk(chunks[place], gradient)
            self._step(optimizer, schedule, step=step, of=len(chunks), loss=loss)
            if pace.is_over(step):
                break
        _require_finite(_trainable(self.catalog.model))

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        step: int,
        of: int,
        loss: float,
    ) -> None:
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step} of {of}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step == of or step % max(1, of // 20) == 0:
            self.log({"stage": "finetune", "step": step, "of": of, "loss": round(loss, 5)})


class _Losses:
    """The towers' own training loss as a function of the table of texts, over positions drawn anew each time."""

    def __init__(
        self,
        towers: TwoTowers,
        train: Histories,
        *,
        training: TrainConfig,
        positions: int,
        rng: np.random.Generator,
    ) -> None:
        self.towers, self.positions, self.rng = towers, positions, rng
        self.low_precision = computes_bfloat16(training.precision)
        self.examples: Examples = towers.user.examples(train)
        counts = np.bincount(train.item_rows, minlength=len(towers.text))
        self.objective = Objective(
            towers,
            counts,
            sampled_items=training.sampled_items,
            low_precision=self.low_precision,
            softmax=training.softmax,
            target_counts=target_counts(self.examples, len(counts)) if training.in_batch_negatives else None,
        )

    def drawn(self) -> LossParts:
        """The mean loss over about so many positions, a batch at a time."""
        batches = self.examples.batches(self.towers.config.batch_size, self.rng)
        inputs = [
            self.examples.batch(chosen) for chosen in batches[: -(-self.positions // self.towers.config.batch_size)]
        ]
        total = sum(int((targets >= 0).sum()) for _, targets in inputs)

        def parts(table: Tensor) -> Iterator[Tensor]:
            frozen = self.towers.text
            self.towers.text = table.to(frozen.device)
            try:
                for given, targets in inputs:
                    yield self._loss(given, targets) * (int((targets >= 0).sum()) / total)
            finally:
                self.towers.text = frozen

        return parts

    def _loss(self, given: Tensor, targets: Tensor) -> Tensor:
        at = self.towers.text.device
        with torch.autocast(at.type, torch.bfloat16, enabled=self.low_precision):
            users = self.towers.user_vectors_at(given.to(at))
        asked = targets.to(at) >= 0
        return self.objective(users[asked].float(), targets.to(at)[asked], self.rng)


def add_adapter(encoder: Any, config: FinetuneConfig) -> None:
    """Makes the encoder trainable by the configured method, in place."""
    torch.manual_seed(config.seed)
    encoder.float().requires_grad_(config.method is FinetuneMethod.FULL)
    if config.method is FinetuneMethod.FULL:
        return
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear", lora_dropout=0.0
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute that has been renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        encoder[0].model = get_peft_model(encoder[0].model, lora)


def merge_adapter(encoder: Any) -> None:
    """Folds LoRA weights into the encoder, which is then a plain sentence-transformer again."""
    if hasattr(encoder[0].model, "merge_and_unload"):
        encoder[0].model = encoder[0].model.merge_and_unload()


class _Pace:
    """The clock of a round."""

    def __init__(self, budget_minutes: float, words: str, say: Callable[[str], None]) -> None:
        self.budget_minutes, self.words, self.say = budget_minutes, words, say
        self.started = time.monotonic()

    @property
    def spent(self) -> float:
        """Share of the budget that is used up."""
        return (time.monotonic() - self.started) / 60 / self.budget_minutes

    def falling(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """From the full rate to 0, by steps from now on or by the clock: the older a gradient, the shorter the step."""
        self.steps = steps
        self.remaining = RemainingTime(steps, self.say, clock=time.monotonic)
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: max(0.0, 1 - max(done / max(steps, 1), self.spent if done else 0.0))
        )

    def is_over(self, done: int) -> bool:
        """Whether no further step should be begun; tells how far it is."""
        self.remaining.at(done, f"{self.words}: step {done} of {self.steps} at most")
        return self.spent > 1


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _require_finite(weights: Sequence[Tensor]) -> None:
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise FloatingPointError("a weight is NaN or infinite after its last step")
