"""Fits a retriever on the training part, and selects and fuses on group B's validation items."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from data.schema import Catalog, Histories, Holdout, Scores
from fusion.linear import LinearFusion
from index.base import VectorIndex
from retrieval.encode import centred, encode_texts
from retrieval.finetune import FinetuneMethod, add_adapter, finetune_round, merge_adapter, table_gradient
from retrieval.retriever import TEXT, TOWERS, TRANSFORMS, TRANSITIONS, Retriever, RetrieverConfig
from retrieval.towers import TwoTowers
from retrieval.train import Log, Positions, TrainConfig, train_towers
from retrieval.transitions import Transitions, TransitionsConfig, count_pairs
from retrieval.validation import next_item_ndcg10

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Recipe:
    """What validation chose, so that a final fit on all interactions can repeat it without validation.

    Attributes:
        epochs: how many epochs of the schedule to run.
    """

    transitions: TransitionsConfig
    epochs: int
    fusion: LinearFusion


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
) -> FittedRetriever:
    """Counts transitions, trains the towers (and the encoder where asked), builds an index, fits the fusion.

    Args:
        train: one list a user; nothing of a held-out item.
        text_vectors: (N, E) float32 of length 1, by the untuned encoder.
        validation: group B only, of which at most `validation_users` are drawn; empty for a final fit, which
            needs a `recipe`.
        build_index: makes an index of (N, D) item vectors.
        load_encoder: gives the sentence-transformer; called only where it is tuned.
    """
    validation = drawn(validation, config.train)
    transitions = _fit_transitions(train, len(catalog), validation=validation, config=config, log=log, recipe=recipe)
    torch.manual_seed(config.train.seed)
    towers = TwoTowers(torch.from_numpy(centred(text_vectors)), config.towers)
    stop_after = recipe.epochs if recipe else None
    records = [train_towers(towers, train, validation, config=config.train, log=log, stop_after=stop_after)]
    encoder = None
    if config.finetune.method is not FinetuneMethod.FROZEN:
        encoder = load_encoder()
        add_adapter(encoder, config.finetune)
        for _ in range(config.finetune.rounds):
            text_vectors = _tune_encoder(encoder, towers, train, catalog, text_vectors, config=config, log=log)
            towers.text = torch.from_numpy(centred(text_vectors))
            records.append(train_towers(towers, train, validation, config=config.train, log=log, stop_after=stop_after))
        merge_adapter(encoder)
    item_vectors = towers.item_vectors()
    retriever = Retriever(
        config=config,
        towers=towers,
        transitions=transitions,
        fusion=recipe.fusion if recipe else _default_fusion(),
        item_vectors=item_vectors,
        text=towers.text.numpy(),
        text_mean=text_vectors.mean(axis=0),
        recent_popularity=recent_popularity(train, len(catalog), config.recent_days),
        index=build_index(item_vectors),
    )
    if recipe is None and len(validation):
        retriever = with_fitted_fusion(retriever, validation, log)
    chosen = Recipe(transitions.config, records[-1].best_epoch, retriever.fusion)
    return FittedRetriever(retriever, text_vectors, chosen, [asdict(record) for record in records], encoder)


def drawn(validation: Holdout, config: TrainConfig) -> Holdout:
    """At most `validation_users` of the users, by chance, in their order."""
    users = np.random.default_rng(config.seed).permutation(len(validation))[: config.validation_users]
    return validation.take(np.sort(users))


def with_fitted_fusion(retriever: Retriever, validation: Holdout, log: Log) -> Retriever:
    """The same retriever with its sources weighed on the candidates of validation users."""
    # Whole unions: lists cut by the present weights would lean towards them.
    candidates = retriever.unions(validation.histories)
    fusion = LinearFusion.fit(candidates, validation.targets, TRANSFORMS)
    log({"stage": "fusion", "weights": {name: round(weight, 4) for name, weight in fusion.weights.items()}})
    return replace(retriever, fusion=fusion)


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
    n_items: int,
    *,
    validation: Holdout,
    config: RetrieverConfig,
    log: Log,
    recipe: Recipe | None,
) -> Transitions:
    if recipe is not None:
        return Transitions.fit(train, n_items, recipe.transitions)
    counts = count_pairs(train, n_items, config.transitions)
    if not config.tune_transitions or not len(validation):
        return Transitions.from_counts(counts, config.transitions)
    best: tuple[float, Transitions] | None = None
    for items, decay in ((10, 0.5), (10, 0.7), (20, 0.8), (30, 0.9)):
        for column_power in (0.1, 0.3):
            setting = config.transitions.model_copy(
                update={"history_items": items, "history_decay": decay, "column_power": column_power}
            )
            fitted = Transitions.from_counts(counts, setting)
            ndcg10 = next_item_ndcg10(lambda h, t=fitted: t.scores(h).toarray(), validation, n_items=n_items)  # type: ignore[misc]
            if best is None or ndcg10 > best[0]:
                best = ndcg10, fitted
    assert best is not None
    log({"stage": "transitions", "validation_ndcg@10": round(best[0], 5), "chosen": best[1].config.model_dump()})
    return best[1]


def _tune_encoder(
    encoder: Any,
    towers: TwoTowers,
    train: Histories,
    catalog: Catalog,
    text_vectors: Scores,
    *,
    config: RetrieverConfig,
    log: Log,
) -> Scores:
    """One round of tuning; returns the catalog's new text vectors (N, E)."""
    rng = np.random.default_rng(config.finetune.seed)
    positions = Positions.of(train, config.towers.history_items)
    chosen = np.sort(rng.permutation(len(positions))[: config.finetune.positions])
    sample = Positions(positions.context[chosen], positions.target[chosen])
    gradient = table_gradient(towers, sample, warm=np.unique(train.item_rows), batch_size=config.train.batch_size)
    finetune_round(encoder, catalog.texts, gradient, mean=text_vectors.mean(axis=0), config=config.finetune, log=log)
    tuned: Scores = encode_texts(encoder, catalog.texts, config.encoder)
    return tuned


def _default_fusion() -> LinearFusion:
    """Weights until they are fitted, or where nothing was held out to fit them on; typical of real catalogs."""
    weights = {TOWERS: 0.5, TRANSITIONS: 0.4, TEXT: 1.5}
    return LinearFusion(dict(TRANSFORMS), weights, dict.fromkeys(weights, 1.0))
