"""Training of one pair of towers: every place of every history predicts the item that came next."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR

from data.schema import Histories, Holdout, Rows
from retrieval.distributed import ALONE, Team
from retrieval.examples import Examples
from retrieval.mining import HardNegatives, MiningConfig
from retrieval.objective import FULL_SOFTMAX_ITEMS, Objective, Softmax
from retrieval.towers import TwoTowers
from retrieval.trackers import Log, RemainingTime, TrackerConfig
from retrieval.training_state import TrainingState
from retrieval.validation import catalog_ndcg10
from store.checkpoint import CheckpointConfig, Checkpoints
from store.errors import NotFinite
from store.hardware import Precision, computes_bfloat16, device


class TrainConfig(BaseModel):
    """How all towers are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int = Field(2, ge=1, description="epochs without a better validation NDCG@10 before stopping")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the rate rises")
    weight_decay: float = Field(
        1e-4,
        ge=0,
        description="AdamW's decoupled weight decay; not of what is learned for each id where the softmax is sampled, "
        "since SparseAdam has none",
    )
    softmax: Softmax = Field(
        Softmax.AUTO,
        description=f"over all trained items, or sampled; auto: sampled from {FULL_SOFTMAX_ITEMS:,} items on",
    )
    sampled_items: int = Field(4096, ge=1, description="items drawn for each step where the softmax is sampled")
    in_batch_negatives: bool = Field(
        False, description="beside what is drawn, the targets of a step are negatives of each other"
    )
    hard_negatives: MiningConfig = Field(
        MiningConfig(), description="where the softmax is sampled: mined before each epoch by the best one so far"
    )
    validation_users: int = Field(5000, ge=1, description="users of group B that early stopping looks at")
    budget_minutes: float = Field(50.0, gt=0, description="for all towers; the learning rate falls in time for its end")
    seed: int = Field(0, ge=0, description="of initial weights, order and dropout")
    precision: Precision = Field(
        Precision.AUTO, description="of matrix products; auto takes bfloat16 where the processor is faster in it"
    )
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="what a killed training goes on from")
    tracking: TrackerConfig = Field(TrackerConfig(), description="curves beside log.jsonl")


@dataclass(frozen=True)
class TrainRecord:
    """What a training did: one dict an epoch, the best epoch's validation NDCG@10, and the minutes it took.

    Attributes:
        schedule_share: of the learning-rate schedule that a budget hastened, as far as the best epoch went; 0 where
            none did.
    """

    name: str
    epochs: list[dict[str, Any]]
    best_epoch: int
    best_ndcg10: float
    minutes: float
    stopped: str
    schedule_share: float = 0.0


def train_towers(
    model: TwoTowers,
    train: Histories,
    validation: Holdout,
    *,
    stand_ins: sp.csr_matrix | None = None,
    config: TrainConfig,
    name: str,
    log: Log,
    seed: int = 0,
    budget_minutes: float | None = None,
    stop_after: int | None = None,
    schedule_share: float = 0.0,
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> TrainRecord:
    """Trains in place and leaves the weights of the best epoch.

    Args:
        validation: users of group B only; early stopping and nothing else looks at it. Without users,
            the last epoch is kept.
        stand_ins: (N, N) who speaks for each item without a training interaction; None: nobody.
        name: of these towers in the log.
        seed: of order, dropout and sample.
        budget_minutes: of this training; that of `config` unless given.
        stop_after: run this many epochs of the same learning-rate schedule, for a fit without validation.
        schedule_share: how far these epochs go in the schedule, at least, where a budget hastened it back then:
            otherwise they would end at a rate that was never validated.
        checkpoints: where an unfinished training is kept, and gone on from.
        team: the processes that train together; each takes its share of every batch.
        say: is told from time to time how long it will take.

    Raises:
        NotFinite: when loss, weights or validation scores turn NaN or infinite; the model then holds the
            best epoch so far.
        Mismatch, CorruptArtifact: as `Checkpoints.resume`.
    """
    torch.manual_seed(seed)
    model.to(team.device if team.size > 1 else device())
    team.broadcast_weights(model)
    counts = np.bincount(train.item_rows, minlength=len(model.text))
    low_precision = bool(team.from_leader(lambda: float(computes_bfloat16(config.precision))))
    examples = model.user.examples(train)
    run = _Run(
        model=model,
        objective=Objective(
            model,
            counts,
            sampled_items=config.sampled_items,
            low_precision=low_precision,
            softmax=config.softmax,
            target_counts=target_counts(examples, len(counts)) if config.in_batch_negatives else None,
        ),
        train=train,
        examples=examples,
        state=_begin(model, examples, config=config, seed=seed),
        config=config,
        budget_minutes=config.budget_minutes if budget_minutes is None else budget_minutes,
        seed=seed,
        low_precision=low_precision,
        checkpoints=checkpoints,
        team=team,
    )
    resumed = checkpoints is not None and checkpoints.resume(run.state)
    team.check_same({"epoch": run.state.epoch, "step": run.state.step}, "unfinished training")
    if resumed:
        log({"stage": name, "event": "resumed", "epoch": run.state.epoch + 1, "step": run.state.step})
    planned = model.config.epochs if stop_after is None else stop_after
    if schedule_share:
        run.share_a_step = schedule_share / max(_steps(examples, model, seed=seed, epochs=planned), 1)
    pace = _Pace(name, planned, say)
    stopped = run.why_stop() if run.state.epoch else ""  # one that was resumed may have come to its end before
    while run.state.epoch < planned and len(run.examples.targets) and not stopped:
        try:
            loss = run.epoch(pace)
            model.settle_cold_items(counts, stand_ins)
            ndcg10 = team.from_leader(lambda: validation_ndcg10(model, validation))
        except FloatingPointError as fault:
            model.load_state_dict(run.state.best_weights)
            raise NotFinite(
                f"{name} diverged in epoch {run.state.epoch + 1}, {fault}: lower "
                f"retriever.{name.split('-')[0]}.learning_rate (now {model.config.learning_rate:g})"
            ) from fault
        stopped = run.end_epoch(ndcg10 if len(validation) else None, loss=loss, name=name, log=log)
    state = run.state
    model.load_state_dict(state.best_weights)
    model.settle_cold_items(counts, stand_ins)
    model.cpu()
    return TrainRecord(
        name,
        state.epochs,
        state.best_epoch,
        state.best_ndcg10,
        round(state.minutes, 3),
        stopped or "all epochs",
        state.best_share,
    )


def validation_ndcg10(model: TwoTowers, asked: Holdout) -> float:
    """NDCG@10 of these towers alone for the next item of each user."""
    items = model.item_vectors()
    return catalog_ndcg10(lambda histories: model.user_vectors(histories) @ items.T, asked, n_items=len(items))


@dataclass
class _Run:
    """A training under way.

    Attributes:
        mined: of the epoch under way, where it has any.
        spent: share of the budget used up at the last step, by the leader's clock: all processes stop at the same step.
        share_a_step: of the learning-rate schedule, at least.
    """

    model: TwoTowers
    objective: Objective
    train: Histories
    examples: Examples
    state: TrainingState
    config: TrainConfig
    budget_minutes: float
    seed: int
    low_precision: bool
    checkpoints: Checkpoints | None
    team: Team
    spent: float = 0.0
    share_a_step: float = 0.0
    mined: HardNegatives | None = None

    def epoch(self, pace: "_Pace") -> float:
        """One pass, or what the budget leaves of it; the mean loss. Raises FloatingPointError if not finite."""
        state = self.state
        self.mined = self._mined()
        self.model.train()
        batches = _order(self.examples, self.model, seed=self.seed, epoch=state.epoch)
        for chosen in batches[state.step :]:
            self.team.seed_step(self.seed, state.epoch * len(batches) + state.step)
            loss = self._step(chosen)
            state.step += 1
            state.steps += 1
            state.losses.append(loss)
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {state.step} of {len(batches)}")
            pace.tell(state, len(batches))
            if self.spent > 1:
                break
            if self.checkpoints is not None and self.team.leads:
                self.checkpoints.save_if_due(state)
        if faults := state.faults():
            raise FloatingPointError(f"{faults[0]} is NaN or infinite after step {state.step} of {len(batches)}")
        return float(np.mean(state.losses))

    def _mined(self) -> HardNegatives | None:
        """By the best epoch so far, which a resumed training knows as well; None in the first epoch."""
        state, mining = self.state, self.config.hard_negatives
        if not state.best_epoch or not mining.per_position or self.objective.sampler is None:
            return None
        now = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(state.best_weights)
        items = self.model.item_vectors()
        users = self.model.user_vectors(self.train, items)
        text = self.model.text.cpu().numpy()
        self.model.load_state_dict(now)
        return HardNegatives.mine(users, items, self.train, text=text, config=mining)

    def _step(self, chosen: np.ndarray) -> float:
        model, share = self.model, self.team.share(len(chosen))
        chosen = chosen[share.place]
        inputs, targets = (tensor.to(model.text.device) for tensor in self.examples.batch(chosen))
        with torch.autocast(model.text.device.type, torch.bfloat16, enabled=self.low_precision):
            users = model.user_vectors_at(inputs)
        asked = targets >= 0
        hard = None
        if self.mined is not None:
            # A generator of its own: what is drawn for one process moves nothing that the others draw.
            rng = np.random.default_rng([self.seed, 2, self.state.epoch, self.state.step])
            place = asked.nonzero()[:, 0].cpu().numpy()
            hard = self.mined.draw(self.examples.users[chosen][place], targets[asked].cpu().numpy(), rng)
        loss = self.objective(users[asked].float(), targets[asked], self.state.rng, hard)
        for optimizer in self.state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        own = float(asked.sum()) * share.counts
        # One message instead of three: what each process asked, its loss, and the leader's clock.
        clock = self._clock() if self.team.leads else 0.0
        positions, summed_loss, self.spent = self.team.sum([own, own * loss.item(), clock])
        self.team.average_gradients(model.parameters(), part=own / positions)
        for optimizer in self.state.optimizers:
            optimizer.step()
        for schedule in self.state.schedules:
            _advance(schedule, max(self.spent, self.share_a_step * (self.state.steps + 1)))
        return summed_loss / positions

    def _clock(self) -> float:
        """Share of the budget that is used up."""
        return self.state.minutes / self.budget_minutes

    def end_epoch(self, ndcg10: float | None, *, loss: float, name: str, log: Log) -> str:
        """Keeps the record and the best weights; says why to stop, if so."""
        state = self.state
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        entry = {
            "stage": name,
            "epoch": state.epoch,
            "loss": round(loss, 4),
            # A final fit asks nobody: a figure of 0 would look like a result.
            **({} if ndcg10 is None else {"validation_ndcg@10": round(ndcg10, 5)}),
            "minutes": round(state.minutes, 2),
        }
        state.epochs.append(entry)
        log(entry)
        if ndcg10 is None or ndcg10 > state.best_ndcg10:
            state.best_ndcg10, state.best_epoch = ndcg10 or 0.0, state.epoch
            state.best_share = state.hastened
            state.best_weights = {key: value.clone() for key, value in state.model.state_dict().items()}
        if self.checkpoints is not None and self.team.leads:
            self.checkpoints.save(state)
        return self.why_stop()

    def why_stop(self) -> str:
        """The reason to do without another epoch; empty to go on."""
        state = self.state
        if self.team.from_leader(self._clock) > 1:
            return f"budget of {self.budget_minutes:.3g} minutes"
        if state.epoch - state.best_epoch >= self.config.patience:
            return f"no better validation NDCG@10 for {self.config.patience} epochs"
        return ""


@dataclass
class _Pace:
    """Tells people how far a training is, and how long the rest may take; it may stop earlier."""

    name: str
    planned_epochs: int
    say: Callable[[str], None]
    before: int = 0
    remaining: RemainingTime | None = None

    def tell(self, state: TrainingState, steps: int) -> None:
        """After a step of an epoch of `steps`."""
        done = state.epoch * steps + state.step
        if self.remaining is None:
            self.remaining, self.before = RemainingTime(self.planned_epochs * steps - done, self.say), done
        words = f"{self.name}: epoch {state.epoch + 1} of {self.planned_epochs} at most, step {state.step} of {steps}"
        self.remaining.at(done - self.before, f"{words}, loss {state.losses[-1]:.3f}")


def _begin(model: TwoTowers, examples: Examples, *, config: TrainConfig, seed: int) -> TrainingState:
    """The state before the first step."""
    sparse = model.sparse_weights()
    dense = [weight for weight in model.parameters() if not any(weight is other for other in sparse)]
    rate = model.config.learning_rate
    optimizers: list[Optimizer] = [AdamW(dense, lr=rate, weight_decay=config.weight_decay)]
    if sparse:
        optimizers.append(SparseAdam(sparse, lr=rate))
    # Lists of like length fill batches unevenly, so that the number of batches is known by their order alone.
    steps = 1 + _steps(examples, model, seed=seed, epochs=model.config.epochs)
    schedules = [_schedule(optimizer, rate, steps=steps, warmup_share=config.warmup_share) for optimizer in optimizers]
    return TrainingState(model, optimizers, schedules, np.random.default_rng([seed, 1]))


def target_counts(examples: Examples, n_items: int) -> Rows:
    """(N,) how many positions lead to each item."""
    return np.bincount(examples.targets, minlength=n_items)


def _order(examples: Examples, model: TwoTowers, *, seed: int, epoch: int) -> list[Rows]:
    """The batches of an epoch, by a generator of their own: a resumed epoch draws them again."""
    return examples.batches(model.config.batch_size, np.random.default_rng([seed, epoch]))


def _steps(examples: Examples, model: TwoTowers, *, seed: int, epochs: int) -> int:
    """How many there are in the first so many epochs."""
    return sum(len(_order(examples, model, seed=seed, epoch=epoch)) for epoch in range(epochs))


def _schedule(optimizer: Optimizer, rate: float, *, steps: int, warmup_share: float) -> OneCycleLR:
    """Rises over the warm-up, then falls to almost nothing."""
    # OneCycleLR divides by the steps of the warm-up less one.
    share = warmup_share if warmup_share * steps != 1 else 1.5 / steps
    return OneCycleLR(optimizer, rate, total_steps=steps, pct_start=max(share, 1e-6))


def _advance(schedule: OneCycleLR, spent: float) -> None:
    """One step on, or on to the share `spent` of the schedule, such as the share of the budget that is used up.

    A training that its budget cuts short ends at small rates, too, instead of in the middle of the schedule. One that
    was moved on by something slow and then goes on in quick steps may come to the end before its budget does: it stays
    there.
    """
    if schedule.last_epoch >= schedule.total_steps - 1:
        return
    last = schedule.total_steps - 2
    schedule.last_epoch = max(schedule.last_epoch, min(int(spent * last), last))
    schedule.step()
