"""Fits a reranker: easy lists from inside the histories, then the retriever's candidates, then the fusion."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.schema import Candidates, Histories, Holdout, Scores
from fusion.linear import LinearFusion
from rerank.base import Reranker, RerankRequest
from rerank.decoder import DecoderConfig
from rerank.encoder import EncoderConfig
from rerank.fusion import RERANKER, RETRIEVAL, FusionRecord, fit_rerank_fusion
from rerank.gate import Gate
from rerank.grades import rated_lists
from rerank.hints import Hint, hint_codes
from rerank.lists import TrainingLists, earlier_positions
from rerank.objective import Objective
from rerank.packed import PackedReranker
from rerank.prompt import PromptConfig, recent
from rerank.train import Log, StopReason, TrainingRecord, train_reranker
from rerank.train_config import RerankTrainConfig
from store.checkpoint import CheckpointConfig, Checkpoints
from store.errors import NotFinite

USERS_AT_ONCE = 64
"""Users whose candidates are scored between two lines of progress."""


class RerankerConfig(BaseModel):
    """Everything that makes a reranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("minilm-l6", description="an asset's name, a local folder, or hub:owner/name@revision")
    encoder: EncoderConfig = Field(EncoderConfig(), description="prompt, adapter and head of a BERT-like model")
    decoder: DecoderConfig = Field(DecoderConfig(), description="prompt and adapter of a Llama-like model")
    train: RerankTrainConfig = Field(RerankTrainConfig(), description="training; its minutes are for both rounds")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="how a killed training is gone on with")
    pairs_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the minutes for a warm start: which item followed this single one? easy negatives",
    )
    easy_share: float = Field(
        0.6, ge=0, le=1, description="share for whole histories with easy negatives; hard lists have the rest"
    )
    residual: bool = Field(
        True, description="hard lists: learn what retrieval's own score leaves open, instead of the whole order anew"
    )
    earlier_targets: int = Field(
        0,
        ge=0,
        description="so many further items of each history teach hard lists, with the candidates of a retriever that "
        "is trained once more without them; 0: none",
    )
    teacher: str | None = Field(
        None,
        description="key of a reranker of this run whose fused scores hard lists are learnt from; retrieval: those of "
        "the first stage; unset: none",
    )
    positions_per_user: int = Field(4, ge=0, description="easy lists drawn from inside each history, at most")
    depth: int = Field(20, ge=1, description="candidates of a user that are reranked, from the top")
    fusion_users: int = Field(1000, ge=1, description="users of group B that the fusion is fitted on, at most")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.pairs_share + self.easy_share > 1:
            raise ValueError(
                f"pairs_share {self.pairs_share:g} and easy_share {self.easy_share:g} are more than all of the minutes:"
                " lower one of them"
            )
        if self.teacher == RETRIEVAL and self.learns_beside_retrieval:
            raise ValueError(
                "teacher retrieval has nothing to teach a reranker that learns what retrieval leaves open: set residual"
                " to false, too"
            )
        hints = {self.encoder.prompt.hint, self.decoder.prompt.hint} - {Hint.NONE}
        told = {"teacher": self.teacher, "earlier_targets": self.earlier_targets, "prompt.hint": hints}
        asked = [name for name, value in told.items() if value]
        if self.train.objective is Objective.GRADED and asked:
            raise ValueError(
                "train.objective graded learns from ratings inside the histories, to which this adds nothing:"
                f" {', '.join(asked)}; unset it, or choose listwise"
            )
        return self

    def graded_by(self, scale: Callable[[tuple[float, ...]], tuple[float, ...]]) -> Self:
        """The same with the rating scale of both kinds of model replaced by what `scale` makes of the stated one."""
        kinds = {"encoder": self.encoder, "decoder": self.decoder}
        graded = {name: kind.model_copy(update={"grades": scale(kind.grades)}) for name, kind in kinds.items()}
        return self.model_copy(update=graded)

    @property
    def learns_beside_retrieval(self) -> bool:
        """Whether hard lists carry retrieval's score, which can be added to a score only in a softmax over a list."""
        return self.residual and self.train.objective is Objective.LISTWISE


@dataclass(frozen=True)
class RerankerRecord:
    """How a reranker came about: both rounds of training and the fusion."""

    rounds: list[TrainingRecord]
    fusion: FusionRecord

    def as_json(self) -> dict[str, Any]:
        """A plain dict for cards and reports, without the loss of every step."""
        rounds = [{key: value for key, value in asdict(record).items() if key != "losses"} for record in self.rounds]
        return {"rounds": rounds, "fusion": self.fusion.as_json()}


@dataclass(frozen=True)
class TaskData:
    """What a reranker learns from.

    Attributes:
        texts: text of each item, by row.
        train: histories that the retriever was fitted on; easy lists come from inside them.
        learners: group A, its candidates and its targets; hard lists come from them.
        learner_candidates: the retriever's for `learners`.
        teacher_scores: (B, K) float32 of another model for `learner_candidates`, to learn from; None: there is none.
        selectors: group B; stops training and fits the fusion.
        selector_candidates: the retriever's for `selectors`.
    """

    texts: Sequence[str]
    train: Histories
    learners: Holdout
    learner_candidates: Candidates
    selectors: Holdout
    selector_candidates: Candidates
    teacher_scores: Scores | None = None


@dataclass(frozen=True)
class Round:
    """One training of several that follow one another."""

    name: str
    lists: TrainingLists
    validation: TrainingLists
    config: RerankTrainConfig


def fit_reranker(
    reranker: PackedReranker[Any],
    task: TaskData,
    *,
    config: RerankerConfig,
    log: Log,
    checkpoints: Callable[[str], Checkpoints] | None = None,
) -> tuple[LinearFusion, Gate, RerankerRecord]:
    """Trains in place, then weighs the result against the retrieval order on group B, and finds who gains by it.

    Args:
        checkpoints: gives the place where a round of training, by its name, is kept until all is done.

    Raises:
        NotFinite: when a loss is NaN or infinite before anything was learnt; later the best weights are kept.
    """
    graded = config.train.objective is Objective.GRADED
    planned = [_graded_round(task, config, reranker.config.grades)] if graded else _rounds(reranker, task, config)
    planned = [one for one in planned if len(one.lists) and one.config.budget_minutes > 0]
    rounds = [
        train_reranker(
            reranker,
            one.lists,
            validation=one.validation,
            config=one.config,
            log=log,
            checkpoints=checkpoints(one.name) if checkpoints else None,
        )
        for one in planned
    ]
    _check_learnt(planned, rounds)
    asked = np.arange(min(len(task.selectors), config.fusion_users))
    candidates = task.selector_candidates.take(asked).head(config.depth)
    scored = with_reranker_scores(reranker.merged(), task.texts, candidates, task.selectors.histories.take(asked))
    fusion, gains, record = fit_rerank_fusion(scored, task.selectors.targets.take(asked))
    gate = Gate.fit(candidates, task.selectors.histories.take(asked).lengths, gains)
    if len(asked):
        log({"event": "fusion", **record.as_json()})
    return fusion, gate, RerankerRecord(rounds, record)


def _check_learnt(planned: Sequence[Round], rounds: Sequence[TrainingRecord]) -> None:
    if any(record.best_step for record in rounds):
        return
    for one, record in zip(planned, rounds, strict=True):
        if record.stop is StopReason.NOT_FINITE:
            raise NotFinite(
                f"the reranker's loss is NaN or infinite at step {record.steps + 1} of the {one.name} lists, before"
                f" anything was learnt: lower reranker.train.learning_rate (now {one.config.learning_rate:g}), or set"
                " reranker.train.precision to float32"
            )


def _rounds(reranker: PackedReranker[Any], task: TaskData, config: RerankerConfig) -> list[Round]:
    """Pairs, easy lists from inside the histories, and hard ones from the retriever's candidates."""
    hint = reranker.config.prompt.hint
    popularity = np.bincount(task.train.item_rows, minlength=len(task.texts)).astype(np.float64)
    # With popular items drawn more often as negatives, popularity alone does not tell the item taken.
    easy_weights = np.sqrt(popularity + 1)
    rng = np.random.default_rng(config.train.seed)
    hard = hard_lists(task, easy_weights, config=config, hint=hint)
    validation = next_item_lists(task.texts, task.selectors, task.selector_candidates, easy_weights)
    validation_of_hard = next_item_lists(
        task.texts,
        task.selectors,
        task.selector_candidates.head(config.depth) if hard.scored else task.selector_candidates,
        None if hard.scored else easy_weights,
        with_prior=config.learns_beside_retrieval,
        hint=hint,
    )
    easy = earlier_positions(
        task.texts,
        task.train,
        per_user=config.positions_per_user,
        min_history=1,
        easy_weights=easy_weights,
        exclude_known=task.learners.exclude_known,
        rng=rng,
    )
    shares = {"pairs": config.pairs_share, "easy": config.easy_share}
    shares["hard"] = 1 - sum(shares.values())
    return [
        Round("pairs", easy.after_last_item(), validation.after_last_item(), _for_round(config.train, shares["pairs"])),
        Round("easy", easy, validation, _for_round(config.train, shares["easy"])),
        Round("hard", hard, validation_of_hard, _for_round(config.train, shares["hard"], hard=True)),
    ]


def _graded_round(task: TaskData, config: RerankerConfig, grades: tuple[float, ...]) -> Round:
    """Rated items inside the histories of all but group B, which validates."""
    rng, train = np.random.default_rng(config.train.seed), config.train
    others = np.setdiff1d(np.arange(len(task.train)), task.selectors.user_rows)
    lists, validation = (
        rated_lists(task.texts, histories, grades, size=train.list_size, per_user=config.positions_per_user, rng=rng)
        for histories in (task.train.take(others), task.selectors.histories)
    )
    return Round("graded", lists, validation, train)


def hard_lists(
    task: TaskData, easy_weights: np.ndarray, *, config: RerankerConfig, hint: Hint = Hint.NONE
) -> TrainingLists:
    """What learners took next, among the retriever's candidates.

    With `residual`, and with a teacher, lists are drawn from the candidates that would be reranked and from nothing
    else: scores beside them are known for these alone. Learners whose item is not among them teach nothing then,
    unless a teacher does.
    """
    candidates = task.learner_candidates
    if not config.learns_beside_retrieval and task.teacher_scores is None:
        return next_item_lists(task.texts, task.learners, candidates, easy_weights, hint=hint)
    lists = next_item_lists(
        task.texts,
        task.learners,
        candidates.head(config.depth),
        easy_weights,
        with_prior=config.learns_beside_retrieval,
        hint=hint,
    )
    if task.teacher_scores is None:
        return lists.take(lists.found)
    return replace(lists, teacher=task.teacher_scores[:, : config.depth])


def next_item_lists(
    texts: Sequence[str],
    asked: Holdout,
    candidates: Candidates,
    easy_weights: np.ndarray | None,
    *,
    with_prior: bool = False,
    hint: Hint = Hint.NONE,
) -> TrainingLists:
    """For each user asked, a list whose target is the next item they took; their later ones are no negatives.

    Args:
        with_prior: with retrieval's score as a prior.
        hint: what the texts are to tell of what retrieval knows.
    """
    targets = asked.targets.item_rows[asked.targets.offsets[:-1]]
    prior = retrieval_column(candidates) if with_prior else None
    hints = None if hint is Hint.NONE else hint_codes(candidates)[hint]
    return TrainingLists(
        texts,
        asked.histories,
        targets,
        candidates.item_rows,
        easy_weights,
        prior,
        hints=hints,
        exclude_known=asked.exclude_known,
        also_taken=asked.targets,
    )


def with_reranker_scores(
    reranker: Reranker, texts: Sequence[str], candidates: Candidates, histories: Histories
) -> Candidates:
    """Candidates in retrieval order with both scores as sources."""
    scores = np.zeros(candidates.item_rows.shape, dtype=np.float32)
    for start in range(0, len(candidates), USERS_AT_ONCE):
        places = range(start, min(start + USERS_AT_ONCE, len(candidates)))
        result = reranker.score([request_of(texts, candidates, histories, place) for place in places])
        for place, values in zip(places, result.scores, strict=True):
            scores[place, candidates.present[place]] = values
    return candidates.with_source(RETRIEVAL, retrieval_column(candidates)).with_source(RERANKER, scores)


def retrieval_column(candidates: Candidates) -> Scores:
    """(B, K) the fused retrieval score as a source; 0 where there is no item."""
    return np.where(candidates.present, candidates.score, np.float32(0)).astype(np.float32)


def request_of(
    texts: Sequence[str],
    candidates: Candidates,
    histories: Histories,
    place: int,
    *,
    prompt: PromptConfig | None = None,
) -> RerankRequest:
    """What a reranker is asked for the user at `place`, without what a `prompt` by these limits would not hold."""
    there = candidates.present[place]
    rows = candidates.item_rows[place][there]
    taken = histories[place].tolist()
    if prompt is not None:
        taken = recent(taken, prompt)
    hints = {kind: codes[0][there].tolist() for kind, codes in hint_codes(candidates.take(np.array([place]))).items()}
    return RerankRequest(
        tuple(texts[row] for row in taken),
        tuple(texts[row] for row in rows),
        hints=hints,
        about=histories.about_of(place),
    )


def _for_round(config: RerankTrainConfig, share: float, *, hard: bool = False) -> RerankTrainConfig:
    """The settings of one of the rounds: its share of the minutes, and easy or hard negatives."""
    minutes = {"budget_minutes": config.budget_minutes * share}
    if hard:
        return config.model_copy(update={**minutes, "hard_share_start": config.hard_share_end, "curriculum_share": 0.0})
    return config.model_copy(update={**minutes, "hard_share_start": 0.0, "hard_share_end": 0.0})
