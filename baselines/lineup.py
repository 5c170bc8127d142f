"""All baselines of one report: fitted on the training log, their settings chosen on validation users."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from baselines.base import Skipped
from baselines.ease import Ease, EaseConfig
from baselines.ials import IalsConfig, ImplicitAls
from baselines.item_knn import ItemKnn, ItemKnnConfig
from baselines.popularity import Popularity, RecentPopularity
from baselines.sasrec import SasRec
from baselines.transitions_text import TransitionsText, TransitionsTextConfig
from data.schema import Histories, Holdout, Scores
from eval.metrics import ndcg_at_k, relevance_of
from retrieval.base import CandidateSource
from retrieval.towers import SequenceConfig
from retrieval.train import TrainConfig

TUNING_DEPTH = 10


class BaselineKind(StrEnum):
    """What a system is compared with."""

    POPULARITY = "popularity"
    RECENT_POPULARITY = "recent-popularity"
    ITEM_KNN = "item-knn"
    EASE = "ease"
    IALS = "ials"
    TRANSITIONS_TEXT = "transitions-text"
    SASREC = "sasrec"
    """trains for minutes, so it is fitted only where asked for"""


QUICK = tuple(kind for kind in BaselineKind if kind is not BaselineKind.SASREC)


class BaselinesConfig(BaseModel):
    """Which baselines are fitted, and the settings that each may choose from on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[BaselineKind, ...] = Field(QUICK, description="baselines that are fitted; sasrec trains for minutes")
    tuning_users: int = Field(5_000, ge=1, description="validation users that settings are chosen on, at most")
    recent_days: tuple[float, ...] = Field((1, 3, 7, 30, 90, 365), min_length=1, description="windows of recency, days")
    knn_history_decay: tuple[float, ...] = Field((0.5, 0.7, 0.9), min_length=1, description="see ItemKnnConfig")
    knn_shrinkage: tuple[float, ...] = Field((0.0, 10.0), min_length=1, description="see ItemKnnConfig")
    ease_l2: tuple[float, ...] = Field((20.0, 150.0, 1000.0), min_length=1, description="see EaseConfig")
    ease_max_items: int = Field(20_000, ge=1, description="larger catalogs skip EASE")
    ials_factors: tuple[int, ...] = Field((64, 128), min_length=1, description="see IalsConfig")
    ials_alpha: tuple[float, ...] = Field((2.0, 10.0, 40.0), min_length=1, description="see IalsConfig")
    sasrec_dropout: tuple[float, ...] = Field((0.2, 0.4), min_length=1, description="see SequenceConfig.hidden_dropout")
    sasrec_budget_minutes: float = Field(60.0, gt=0, description="for each training of SASRec")
    text_weight: tuple[float, ...] = Field(
        (0.0, 0.025, 0.05, 0.1, 0.2, 0.4), min_length=1, description="see TransitionsTextConfig"
    )


@dataclass(frozen=True)
class Task:
    """What baselines are fitted on.

    Attributes:
        train: one history for each user.
        n_items: N, the size of the catalog.
        text_vectors: (N, D) float32 of an untrained encoder, or None.
        config: what may be chosen.
        seed: of random starts and of the choice of tuning users.
        validation: the users that settings are chosen on.
        log: gets lines for people.
    """

    train: Histories
    n_items: int
    text_vectors: Scores | None
    config: BaselinesConfig
    seed: int
    validation: Holdout
    log: Callable[[str], None]


@dataclass(frozen=True)
class Option:
    """One choice of settings.

    Attributes:
        words: the settings.
        source: what they give.
        again: the same settings fitted on another log.
    """

    words: str
    source: CandidateSource
    again: Callable[[Histories], CandidateSource]


def fit_all(
    train: Histories,
    validation: Holdout,
    n_items: int,
    *,
    text_vectors: Scores | None = None,
    config: BaselinesConfig | None = None,
    seed: int = 0,
    again: Histories | None = None,
    log: Callable[[str], None],
) -> list[CandidateSource | Skipped]:
    """Fits every baseline of the config, each with the setting of highest validation NDCG@10.

    Args:
        train: what they are fitted on; nothing of validation is in it.
        validation: the users that settings are chosen on. Without any, the first setting of each is taken.
        n_items: size of the catalog.
        text_vectors: (N, D) float32 of an untrained encoder; without, what needs them is skipped.
        config: None: the defaults.
        seed: of random starts and of the choice of tuning users.
        again: a longer log on which the chosen baselines are fitted once more.
        log: gets a line for each baseline, with its settings and seconds.

    Returns:
        For each kind of the config, in its order, a fitted source or the reason why there is none.
    """
    config = config or BaselinesConfig()
    if len(validation) > config.tuning_users:
        rng = np.random.default_rng(seed)
        validation = validation.take(np.sort(rng.choice(len(validation), config.tuning_users, replace=False)))
    task = Task(train, n_items, text_vectors, config, seed, validation, log)
    fitted: list[CandidateSource | Skipped] = []
    for kind in config.kinds:
        if skipped := _skipped(kind, task):
            log(f"{skipped.name}: skipped; {skipped.reason}")
            fitted.append(skipped)
            continue
        best = _best(BASELINES[kind](task), validation, log)
        fitted.append(best.source if again is None else best.again(again))
    return fitted


def validation_ndcg(source: CandidateSource, validation: Holdout) -> float:
    """Mean NDCG@10 over all users of the holdout."""
    found = source.candidates(validation.histories, TUNING_DEPTH, exclude_known=validation.exclude_known)
    relevance = relevance_of(found, validation.targets)
    return float(ndcg_at_k(relevance, validation.targets.lengths, k=TUNING_DEPTH).mean())


def _best(options: Iterator[Option], validation: Holdout, log: Callable[[str], None]) -> Option:
    """The option of highest validation NDCG@10, the earlier of equal ones; fits no more than needed."""
    started = time.perf_counter()
    best = next(options)
    name = best.source.name
    if not len(validation):
        log(f"{name}: {best.words} (no validation users to choose on), {time.perf_counter() - started:.1f} s")
        return best
    highest, tried = validation_ndcg(best.source, validation), 1
    for other in options:
        reached, tried = validation_ndcg(other.source, validation), tried + 1
        if reached > highest:
            best, highest = other, reached
    took = time.perf_counter() - started
    log(f"{name}: {best.words}; validation NDCG@10 {highest:.4f}, best of {tried}, {took:.1f} s")
    return best


def _skipped(kind: BaselineKind, task: Task) -> Skipped | None:
    if kind is BaselineKind.EASE:
        return Ease.refuses(task.n_items, EaseConfig(max_items=task.config.ease_max_items))
    if kind is BaselineKind.IALS and not len(task.train.item_rows):
        return Skipped(ImplicitAls.name, "the training log is empty")
    if kind is BaselineKind.TRANSITIONS_TEXT and task.text_vectors is None:
        return Skipped(TransitionsText.name, "no text vectors were given")
    return None


def _popularity(task: Task) -> Iterator[Option]:
    def fit(log: Histories) -> CandidateSource:
        return Popularity.fit(log, task.n_items)

    yield Option("all interactions", fit(task.train), fit)


def _recent_popularity(task: Task) -> Iterator[Option]:
    windows = set()
    for days in task.config.recent_days:
        fit = partial(RecentPopularity.fit, n_items=task.n_items, days=days)
        source = fit(task.train)
        if source.window not in windows:  # a log without times has one window only
            windows.add(source.window)
            yield Option(source.window, source, fit)


def _item_knn(task: Task) -> Iterator[Option]:
    for shrinkage in task.config.knn_shrinkage:
        fitted = ItemKnn.fit(task.train, task.n_items, ItemKnnConfig(shrinkage=shrinkage))
        for decay in task.config.knn_history_decay:
            settings = fitted.config.model_copy(update={"history_decay": decay})
            fit = partial(ItemKnn.fit, n_items=task.n_items, config=settings)
            yield Option(f"shrinkage {shrinkage:g}, history decay {decay:g}", replace(fitted, config=settings), fit)


def _ease(task: Task) -> Iterator[Option]:
    for l2 in task.config.ease_l2:
        settings = EaseConfig(l2=l2, max_items=task.config.ease_max_items)
        fit = partial(Ease.fit, n_items=task.n_items, config=settings)
        yield Option(f"l2 {l2:g}", fit(task.train), fit)


def _ials(task: Task) -> Iterator[Option]:
    for factors in task.config.ials_factors:
        for alpha in task.config.ials_alpha:
            settings = IalsConfig(factors=factors, alpha=alpha)
            fit = partial(ImplicitAls.fit, n_items=task.n_items, config=settings, seed=task.seed)
            yield Option(f"{factors} factors, alpha {alpha:g}", fit(task.train), fit)


def _transitions_text(task: Task) -> Iterator[Option]:
    vectors = task.text_vectors
    assert vectors is not None  # _skipped has asked
    fitted = TransitionsText.fit(task.train, task.n_items, TransitionsTextConfig(), text_vectors=vectors)
    for weight in task.config.text_weight:
        settings = fitted.config.model_copy(update={"text_weight": weight})
        fit = partial(TransitionsText.fit, n_items=task.n_items, config=settings, text_vectors=vectors)
        yield Option(f"text weight {weight:g}", replace(fitted, config=settings), fit)


def _sasrec(task: Task) -> Iterator[Option]:
    training = TrainConfig(seed=task.seed, budget_minutes=task.config.sasrec_budget_minutes)
    for dropout in task.config.sasrec_dropout:
        fit = partial(
            SasRec.fit,
            n_items=task.n_items,
            config=SequenceConfig(text_dim=0, hidden_dropout=dropout),
            validation=task.validation,
            training=training,
            log=lambda entry: task.log("  ".join(f"{key} {value}" for key, value in entry.items())),
        )
        source = fit(task.train)
        again = partial(
            fit,
            validation=task.validation.take(np.zeros(0, np.int64)),
            stop_after=source.epochs,
            schedule_share=source.schedule_share,
        )
        yield Option(f"dropout {dropout:g}", source, again)


BASELINES: dict[BaselineKind, Callable[[Task], Iterator[Option]]] = {
    BaselineKind.POPULARITY: _popularity,
    BaselineKind.RECENT_POPULARITY: _recent_popularity,
    BaselineKind.ITEM_KNN: _item_knn,
    BaselineKind.EASE: _ease,
    BaselineKind.IALS: _ials,
    BaselineKind.TRANSITIONS_TEXT: _transitions_text,
    BaselineKind.SASREC: _sasrec,
}
"""Kind → its settings, fitted one after another as they are asked for."""
