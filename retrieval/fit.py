"""Fits a retriever on the training part, and selects and fuses on group B's validation items."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from data.schema import Candidates, Catalog, Histories, Holdout, Scores
from fusion.linear import LinearFusion, Transform
from index.base import VectorIndex
from retrieval.distributed import ALONE, Team
from retrieval.encode import centred
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.finetune import EncoderTuner, FinetuneMethod, Tuned, tune_encoder
from retrieval.likeness import Likeness
from retrieval.objective import samples_softmax
from retrieval.retriever import LAST_TEXT, TEXT, TRANSITIONS, Retriever, RetrieverConfig, transforms
from retrieval.stand_ins import find_stand_ins
from retrieval.towers import TwoTowers
from retrieval.trackers import Log
from retrieval.train import TrainConfig, TrainRecord, train_towers
from retrieval.transitions import Transitions, TransitionsConfig, count_pairs
from retrieval.trend import Trend
from retrieval.user_tower import UserTowerKind
from retrieval.validation import next_item_ndcg10
from retrieval.words import Words
from store.checkpoint import Checkpoints
from store.errors import BadInput

SECONDS_PER_DAY = 86_400
MOST_COPIES = 100
"""Seeds of neighbouring fits stand this far apart, so that no member of one is a member of the other."""


@dataclass(frozen=True)
class Recipe:
    """What validation chose, so that a final fit on all interactions can repeat it without validation.

    Attributes:
        epochs: member of the ensemble → how many epochs of its schedule to run.
        tower_weights: kind of tower → its weight in the search.
        tuning_rounds: rounds of tuning behind the text vectors; 0 where the frozen encoder was best.
    """

    transitions: TransitionsConfig
    epochs: Mapping[str, int]
    tower_weights: Mapping[UserTowerKind, float]
    fusion: LinearFusion
    tuning_rounds: int = 0


@dataclass(frozen=True)
class FittedRetriever:
    """A retriever and how it came about.

    Attributes:
        text_vectors: (N, E) float32 of length 1, by the encoder as it is now.
        encoder: the text encoder if it was tuned; None where it stayed frozen.
    """

    retriever: Retriever
    text_vectors: Scores
    recipe: Recipe
    records: list[dict[str, Any]]
    encoder: Any | None


def fit_retriever(
    train: Histories,
    catalog: Catalog,
    text_vectors: Scores,
    *,
    validation: Holdout,
    config: RetrieverConfig,
    build_index: Callable[[Scores], VectorIndex],
    load_encoder: Callable[[], Any],
    log: Log,
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
        load_encoder: gives the sentence-transformer; called only where it is tuned.
        checkpoints: gives the place where the unfinished training of a member of the ensemble is kept.
        team: the processes that train together.
        say: is told from time to time how long it will take.
    """
    config = config.suited(train)
    validation = drawn(validation, config.train)
    taken = np.bincount(train.item_rows, minlength=len(catalog))
    words = Words.of(catalog.texts)
    stand_ins = find_stand_ins(Likeness(centred(text_vectors), words), taken)
    log({"stage": "stand-ins", "items_without_a_past": int((taken == 0).sum())})
    transitions = _fit_transitions(train, stand_ins, validation=validation, config=config, log=log, recipe=recipe)
    one = partial(
        train_towers,
        validation=validation,
        stand_ins=stand_ins,
        config=config.train,
        log=log,
        team=team,
        say=say,
    )
    tuned = _tuned(
        train,
        catalog,
        text_vectors,
        validation,
        config=config,
        one=one,
        load_encoder=load_encoder,
        log=log,
        recipe=recipe,
    )
    if tuned is not None:
        text_vectors = tuned.text_vectors
    text = centred(text_vectors)
    towers, records = _train_ensemble(
        train,
        text,
        config=config,
        recipe=recipe,
        one=one,
        checkpoints=checkpoints,
    )
    item_vectors = towers.item_vectors()
    trend = Trend.fit(train, len(catalog), config.trend_days)
    retriever = Retriever(
        config=config,
        towers=towers,
        transitions=transitions,
        fusion=recipe.fusion if recipe else _default_fusion(towers, trend),
        item_vectors=item_vectors,
        text=text,
        text_mean=text_vectors.mean(axis=0),
        words=words,
        trend=trend,
        recent_popularity=recent_popularity(train, len(catalog), config.recent_days),
        index=build_index(item_vectors),
    )
    if recipe is None and len(validation):
        retriever = with_fitted_fusion(retriever, validation, log)
    chosen = Recipe(
        transitions.config,
        {record.name: record.best_epoch for record in records},
        retriever.towers.weights,
        retriever.fusion,
        tuned.number if tuned else 0,
    )
    encoder = tuned.encoder if tuned else None
    return FittedRetriever(retriever, text_vectors, chosen, [asdict(record) for record in records], encoder)


def _tuned(
    train: Histories,
    catalog: Catalog,
    text_vectors: Scores,
    validation: Holdout,
    *,
    config: RetrieverConfig,
    one: Callable[..., TrainRecord],
    load_encoder: Callable[[], Any],
    log: Log,
    recipe: Recipe | None,
) -> Tuned | None:
    """The best round of tuning the encoder under the first kind of towers that reads text; None where it is frozen."""
    rounds = config.finetune.rounds if recipe is None else recipe.tuning_rounds
    if config.finetune.method is FinetuneMethod.FROZEN or not rounds:
        return None
    kind = next((kind for kind, towers in config.towers.items() if towers.text_dim), None)
    if kind is None:
        raise BadInput("retriever.finetune tunes the text encoder, but no towers read text: set a text_dim above 0")
    name, seed = f"{kind}-1", config.train.seed * MOST_COPIES + 1
    sparse = samples_softmax(np.bincount(train.item_rows, minlength=len(text_vectors)))

    def fit_towers(vectors: Scores) -> tuple[TwoTowers, float]:
        torch.manual_seed(seed)
        towers = TwoTowers(torch.from_numpy(centred(vectors)), config.towers[kind], sparse=sparse)
        record = one(towers, train, name=name, seed=seed, stop_after=recipe.epochs[name] if recipe else None)
        return towers, record.best_ndcg10

    tuner = EncoderTuner(
        load_encoder(), catalog.texts, config=config.finetune, training=config.train, reading=config.encoder, log=log
    )
    return tune_encoder(tuner, train, text_vectors, fit_towers=fit_towers, rounds=rounds, selects=bool(len(validation)))


def _train_ensemble(
    train: Histories,
    text: Scores,
    *,
    config: RetrieverConfig,
    recipe: Recipe | None,
    one: Callable[..., TrainRecord],
    checkpoints: Callable[[str], Checkpoints] | None,
) -> tuple[TowerEnsemble, list[TrainRecord]]:
    """All members, one after the other, each by `one`; each may take its share of the minutes that are left."""
    planned = [(kind, copy) for kind, towers in config.towers.items() for copy in range(1, towers.copies + 1)]
    sparse = samples_softmax(np.bincount(train.item_rows, minlength=len(text)))
    members: list[Member] = []
    records: list[TrainRecord] = []
    for place, (kind, copy) in enumerate(planned):
        seed = config.train.seed * MOST_COPIES + copy
        torch.manual_seed(seed)
        member = Member(kind, copy, TwoTowers(torch.from_numpy(text), config.towers[kind], sparse=sparse))
        left = config.train.budget_minutes - sum(record.minutes for record in records)
        records.append(
            one(
                member.towers,
                train,
                name=member.name,
                seed=seed,
                budget_minutes=left / (len(planned) - place),
                stop_after=recipe.epochs[member.name] if recipe else None,
                checkpoints=checkpoints(member.name) if checkpoints else None,
            )
        )
        members.append(member)
    weights = recipe.tower_weights if recipe else dict.fromkeys(config.towers, 1.0)
    return TowerEnsemble(tuple(members), weights), records


def drawn(validation: Holdout, config: TrainConfig) -> Holdout:
    """At most `validation_users` of the users, by chance, in their order."""
    users = np.random.default_rng(config.seed).permutation(len(validation))[: config.validation_users]
    return validation.take(np.sort(users))


def with_fitted_fusion(retriever: Retriever, validation: Holdout, log: Log) -> Retriever:
    """The same retriever with its sources weighed on the candidates of validation users."""
    # Whole unions: lists cut by the present weights would lean towards them.
    candidates = retriever.unions(validation.histories)
    kinds = retriever.towers.kinds
    towers = LinearFusion.fit(candidates, validation.targets, dict.fromkeys(kinds, Transform.RAW))
    fusion = fitted_fusion(candidates, validation.targets, transforms(kinds, retriever.trend), retriever.trend)
    log({"stage": "fusion", "weights": {name: round(weight, 4) for name, weight in fusion.weights.items()}})
    if any(towers.weights.values()):
        weights = {kind: towers.weights[kind] for kind in kinds}
        retriever = replace(retriever, towers=replace(retriever.towers, weights=weights))
    return replace(retriever, fusion=fusion)


def fitted_fusion(
    candidates: Candidates, targets: Histories, columns: Mapping[str, Transform], trend: Trend
) -> LinearFusion:
    """The weights of all or some of a retriever's sources."""
    # Beside a profile the last item, beside late weeks all time: what is left is a contrast, of either sign.
    return LinearFusion.fit(candidates, targets, columns, signed=(LAST_TEXT, *trend.names))


def recent_popularity(train: Histories, n_items: int, days: int) -> Scores:
    """(N,) float32 interactions of each item in the last `days` days of the log, or in all of it without time.

    Items that tie, most of all at 0, are told apart by their interactions over all time.
    """
    overall = np.bincount(train.item_rows, minlength=n_items).astype(np.float32)
    if train.timestamps is None or not (train.timestamps != Histories.NO_TIME).any():
        return overall
    recent = train.timestamps > train.timestamps.max() - days * SECONDS_PER_DAY
    counts = np.bincount(train.item_rows[recent], minlength=n_items).astype(np.float32)
    return np.asarray(counts + overall / (overall.sum() + 1), dtype=np.float32)


def _fit_transitions(
    train: Histories,
    stand_ins: sp.csr_matrix,
    *,
    validation: Holdout,
    config: RetrieverConfig,
    log: Log,
    recipe: Recipe | None,
) -> Transitions:
    n_items = stand_ins.shape[0]
    if recipe is not None:
        return replace(Transitions.fit(train, n_items, recipe.transitions), stand_ins=stand_ins)
    if not config.tune_transitions or not len(validation):
        return replace(Transitions.fit(train, n_items, config.transitions), stand_ins=stand_ins)
    best: tuple[float, Transitions] | None = None
    for counted, readings in _ways_to_count(train, config.transitions):
        counts = count_pairs(train, n_items, counted)
        for (items, decay), column_power in product(readings, (0.1, 0.3)):
            setting = counted.model_copy(
                update={"history_items": items, "history_decay": decay, "column_power": column_power}
            )
            fitted = replace(Transitions.from_counts(counts, setting), stand_ins=stand_ins)
            ndcg10 = next_item_ndcg10(lambda h, t=fitted: t.scores(h).toarray(), validation, n_items=n_items)  # type: ignore[misc]
            if best is None or ndcg10 > best[0]:
                best = ndcg10, fitted
    assert best is not None
    log({"stage": "transitions", "validation_ndcg@10": round(best[0], 5), "chosen": best[1].config.model_dump()})
    return best[1]


def _ways_to_count(
    train: Histories, config: TransitionsConfig
) -> Iterator[tuple[TransitionsConfig, tuple[tuple[int, float], ...]]]:
    """How pairs may be counted, each with the histories (items, decay) over which they may be summed."""
    recent = ((10, 0.5), (10, 0.7), (20, 0.8), (30, 0.9))
    yield config, recent
    if train.timestamps is None or not (train.timestamps != Histories.NO_TIME).any():
        # The order of a log without time may mean nothing: then pairs count the same both ways and at any distance.
        yield config.model_copy(update={"gap_decay": 1.0, "backward": 1.0}), (*recent, (100, 0.97))


def _default_fusion(towers: TowerEnsemble, trend: Trend) -> LinearFusion:
    """Weights until they are fitted, or where nothing was held out to fit them on; typical of real catalogs."""
    weights = {**dict.fromkeys(map(str, towers.kinds), 0.5 / len(towers.kinds)), TRANSITIONS: 0.4, TEXT: 1.5}
    columns = transforms(towers.kinds, trend)
    return LinearFusion(columns, dict.fromkeys(columns, 0.0) | weights, dict.fromkeys(columns, 1.0))
