"""Fits a retriever on the training part, and selects and fuses on group B's validation items."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from data.schema import Catalog, Histories, Holdout, Scores
from fusion.linear import LinearFusion
from fusion.network import FusionNetwork
from index.base import VectorIndex
from retrieval.distributed import ALONE, Team
from retrieval.encode import EncoderConfig, TextSpace
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.finetune import EncoderTuner, FinetuneMethod
from retrieval.groundwork import Groundwork
from retrieval.history_reader import HistoryReader
from retrieval.objective import samples_softmax
from retrieval.own_weights import OwnWeights
from retrieval.retriever import Retriever, RetrieverConfig
from retrieval.rounds import Tuned, tune_encoder
from retrieval.topics import beside
from retrieval.towers import TwoTowers
from retrieval.trackers import Log
from retrieval.train import TrainConfig, TrainRecord, train_towers
from retrieval.transitions import TransitionsConfig
from retrieval.user_tower import UserTowerKind
from retrieval.weighing import Weighed, with_fitted_fusion
from store.checkpoint import Checkpoints
from store.errors import BadInput

LEAST_MINUTES = 1e-3
"""Of a member's training, where those before it took more than theirs: a step and a look at validation."""
MOST_COPIES = 100
"""Seeds of neighbouring fits stand this far apart, so that no member of one is a member of the other."""


@dataclass(frozen=True)
class Recipe:
    """What validation chose, so that a final fit on all interactions can repeat it without validation.

    Attributes:
        epochs: member of the ensemble → how many epochs of its schedule to run.
        tower_weights: kind of tower → its weight in the search.
        tuning_rounds: rounds of tuning behind the text vectors; 0 where the frozen encoder was best.
        schedule_shares: member of the ensemble → how far these epochs go in its schedule, where a budget hastened it.
    """

    transitions: TransitionsConfig
    epochs: Mapping[str, int]
    tower_weights: Mapping[UserTowerKind, float]
    fusion: LinearFusion
    tuning_rounds: int = 0
    schedule_shares: Mapping[str, float] = field(default_factory=dict)
    network: FusionNetwork | None = None


@dataclass(frozen=True)
class FittedRetriever:
    """A retriever and how it came about.

    Attributes:
        text_vectors: (N, E) float32 of length 1, by the encoder as it is now.
        encoder: the text encoder if it was tuned; None where it stayed frozen.
        fused_ndcg10: validation NDCG@10 of the fused lists, whose weights were fitted on the same users; 0 without.
        own_weights: what validation said about parts of the candidates that may have weights of their own.
    """

    retriever: Retriever
    text_vectors: Scores
    recipe: Recipe
    records: list[dict[str, Any]]
    encoder: Any | None
    fused_ndcg10: float = 0.0
    own_weights: Sequence[OwnWeights] = ()


def fit_retriever(
    train: Histories,
    catalog: Catalog,
    text_vectors: Scores,
    *,
    validation: Holdout,
    config: RetrieverConfig,
    build_index: Callable[[Scores], VectorIndex],
    load_encoder: Callable[[EncoderConfig], Any],
    log: Log,
    learners: Holdout | None = None,
    recipe: Recipe | None = None,
    checkpoints: Callable[[str], Checkpoints] | None = None,
    team: Team = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> FittedRetriever:
    """Counts transitions, trains the towers (and the encoder where asked), builds an index, fits the fusion.

    Args:
        train: one list a user; nothing of a held-out item.
        text_vectors: (N, E) float32 of length 1, by the untuned encoder.
        validation: group B only, of which at most `validation_users` are drawn; empty for a final fit, which
            needs a `recipe`.
        build_index: makes an index of (N, D) item vectors.
        load_encoder: gives the sentence-transformer of these settings; called only where it is tuned or reads
            histories.
        learners: group A, who teach the fusion's network; None: it has none.
        checkpoints: gives the place where the unfinished training of a member of the ensemble is kept.
        team: the processes that train together.
        say: is told from time to time how long it will take.
    """
    config = config.suited(train)
    validation = drawn(validation, config.train)
    chosen = recipe.transitions if recipe else None
    groundwork = Groundwork.lay(
        train, catalog, text_vectors, validation=validation, config=config, log=log, chosen=chosen, team=team
    )
    training = _Training(train, validation, groundwork, config, recipe, checkpoints, log=log, team=team, say=say)
    started, tuning_minutes = time.monotonic(), 0.0
    tuned = training.tuned_encoder(catalog, text_vectors, load_encoder)
    if tuned is not None:
        text_vectors, tuning_minutes = tuned.text_vectors, (time.monotonic() - started) / 60
    encoder = tuned.encoder if tuned else None
    reader, space = None, TextSpace.of(text_vectors, whiten=config.whiten_text)
    if config.text.copies:
        load = load_encoder if encoder is None else lambda settings: encoder
        reader = HistoryReader(
            catalog.texts, text_vectors, load_encoder=load, config=config.reading, space=space, say=say
        )
    read = beside(space(text_vectors), groundwork.topics_of_items())
    towers, records = training.ensemble(read, reader, tuning_minutes=tuning_minutes)
    fusion = recipe.fusion if recipe else None
    retriever = groundwork.under(towers, text_vectors, config=config, build_index=build_index, fusion=fusion)
    retriever = replace(retriever, network=recipe.network if recipe else None)
    weighed = Weighed(retriever)
    if recipe is None and len(validation):
        weighed = with_fitted_fusion(retriever, validation, log, learners=learners, say=say)
        retriever = weighed.retriever
    made_by = Recipe(
        groundwork.transitions.config,
        {record.name: record.best_epoch for record in records},
        retriever.towers.weights,
        retriever.fusion,
        tuned.number if tuned else 0,
        {record.name: record.schedule_share for record in records if record.schedule_share},
        retriever.network,
    )
    told = [asdict(record) for record in records]
    return FittedRetriever(retriever, text_vectors, made_by, told, encoder, weighed.ndcg10, weighed.own)


@dataclass(frozen=True)
class _Training:
    """What all towers of a retriever are trained on, and how; see `fit_retriever`."""

    train: Histories
    validation: Holdout
    groundwork: Groundwork
    config: RetrieverConfig
    recipe: Recipe | None
    checkpoints: Callable[[str], Checkpoints] | None
    _: KW_ONLY
    log: Log
    team: Team
    say: Callable[[str], None]

    def tuned_encoder(
        self, catalog: Catalog, text_vectors: Scores, load_encoder: Callable[[EncoderConfig], Any]
    ) -> Tuned | None:
        """The best round of tuning under the first kind of towers that reads items' texts; None where it is frozen."""
        config, recipe = self.config, self.recipe
        rounds = config.finetune.rounds if recipe is None else recipe.tuning_rounds
        if config.finetune.method is FinetuneMethod.FROZEN or not rounds:
            return None
        tunable = {kind: towers for kind, towers in config.towers.items() if kind is not UserTowerKind.TEXT}
        kind = next((kind for kind, towers in tunable.items() if towers.text_dim), None)
        if kind is None:
            raise BadInput(
                "retriever.finetune tunes the text encoder under recency or sequence towers, but none of them reads "
                "text: set copies and text_dim of either above 0"
            )

        topics = self.groundwork.topics_of_items()
        # Of equal length, so that each round has the same chance as the frozen encoder.
        part_minutes = config.finetune.budget_share * config.train.budget_minutes / (2 * rounds + 1)
        self.say(
            f"tuning the text encoder: {rounds} rounds and {rounds + 1} trainings of towers to judge them, at most "
            f"{part_minutes:.3g} minutes each, and the reading of the catalog after each round"
        )

        def fit_towers(vectors: Scores, number: int) -> tuple[TwoTowers, float]:
            space = TextSpace.of(vectors, whiten=config.whiten_text)
            member = self._untrained(kind, 1, beside(space(vectors), topics), None)
            kept = self.checkpoints(f"tuning-{number}-{member.name}") if self.checkpoints else None
            record = self._trained(member, budget_minutes=part_minutes, checkpoints=kept)
            return member.towers, record.best_ndcg10

        # Tuning needs float32 weights; bfloat16 would lose small updates.
        loaded = config.reading if config.text.copies else config.encoder
        encoder = load_encoder(loaded.model_copy(update={"precision": "float32"}))
        longest = encoder.max_seq_length
        encoder.max_seq_length = min(config.encoder.max_tokens, longest)
        tuner = EncoderTuner(
            encoder,
            catalog.texts,
            config=config.finetune,
            training=config.train,
            reading=config.encoder,
            whiten=config.whiten_text,
            topics=topics,
            log=self.log,
            say=self.say,
        )
        best = tune_encoder(
            tuner,
            self.train,
            text_vectors,
            fit_towers=fit_towers,
            rounds=rounds,
            selects=bool(len(self.validation)),
            minutes_a_round=part_minutes,
            checkpoints=self.checkpoints,
            team=self.team,
        )
        encoder.max_seq_length = longest
        return best

    def ensemble(
        self, text: Scores, reader: HistoryReader | None, *, tuning_minutes: float
    ) -> tuple[TowerEnsemble, list[TrainRecord]]:
        """All members, trained one after the other; each may take its share of the minutes that are left.

        Tuning leaves what it did not use of its share, and never less than the rest.

        Args:
            text: (N, E + K) what they read of the items' texts.
        """
        towers, budget = self.config.towers, self.config.train.budget_minutes
        budget -= min(tuning_minutes, self.config.finetune.budget_share * budget)
        planned = [(kind, copy) for kind, of_kind in towers.items() for copy in range(1, of_kind.copies + 1)]
        members: list[Member] = []
        records: list[TrainRecord] = []
        for place, (kind, copy) in enumerate(planned):
            member = self._untrained(kind, copy, text, reader)
            left = max(budget - sum(record.minutes for record in records), LEAST_MINUTES)
            checkpoints = self.checkpoints(member.name) if self.checkpoints else None
            records.append(self._trained(member, budget_minutes=left / (len(planned) - place), checkpoints=checkpoints))
            members.append(member)
        weights = self.recipe.tower_weights if self.recipe else dict.fromkeys(towers, 1.0)
        return TowerEnsemble(tuple(members), weights), records

    def _untrained(self, kind: UserTowerKind, copy: int, text: Scores, reader: HistoryReader | None) -> Member:
        """A member with the initial weights of its seed."""
        torch.manual_seed(self._seed(copy))
        taken = np.bincount(self.train.item_rows, minlength=len(text))
        sparse = samples_softmax(taken, self.config.train.softmax)
        config = self.config.towers[kind]
        return Member(kind, copy, TwoTowers(torch.from_numpy(text), config, sparse=sparse, reader=reader))

    def _trained(
        self, member: Member, *, budget_minutes: float | None = None, checkpoints: Checkpoints | None = None
    ) -> TrainRecord:
        """Trains a member in place, for as many epochs as the recipe says."""
        return train_towers(
            member.towers,
            self.train,
            self.validation,
            stand_ins=self.groundwork.transitions.stand_ins,
            config=self.config.train,
            name=member.name,
            log=self.log,
            seed=self._seed(member.copy),
            budget_minutes=budget_minutes,
            stop_after=self.recipe.epochs[member.name] if self.recipe else None,
            schedule_share=self.recipe.schedule_shares.get(member.name, 0.0) if self.recipe else 0.0,
            checkpoints=checkpoints,
            team=self.team,
            say=self.say,
        )

    def _seed(self, copy: int) -> int:
        return self.config.train.seed * MOST_COPIES + copy


def drawn(validation: Holdout, config: TrainConfig) -> Holdout:
    """At most `validation_users` of the users, by chance, in their order."""
    users = np.random.default_rng(config.seed).permutation(len(validation))[: config.validation_users]
    return validation.take(np.sort(users))
