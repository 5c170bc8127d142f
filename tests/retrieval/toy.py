"""Small catalogs with a planted truth, and retrievers over them with random or trained towers."""

from dataclasses import replace
from mmap import mmap

import numpy as np
import polars as pl
import torch

from data.schema import ITEM_ID, TEXT, TITLE, Catalog, Histories, Holdout
from data.vocabulary import Vocabulary
from fusion.linear import LinearFusion
from index.faiss_index import FlatIndex
from retrieval.encode import TextSpace, centred
from retrieval.ensemble import Member, TowerEnsemble
from retrieval.likeness import Likeness
from retrieval.retriever import TEXT as TEXT_SOURCE
from retrieval.retriever import TRANSITIONS, Retriever, RetrieverConfig, transforms
from retrieval.stand_ins import find_stand_ins
from retrieval.topics import Topics, beside
from retrieval.towers import SequenceConfig, TextConfig, TowerConfig, TwoTowers
from retrieval.train import TrainConfig
from retrieval.transitions import Transitions, TransitionsConfig
from retrieval.trend import Trend
from retrieval.user_tower import UserTowerKind
from retrieval.words import Words
from tests.retrieval.bag_encoder import bag_reader

SMALL = TowerConfig(text_dim=6, residual_dim=8, history_items=4, epochs=4, batch_size=64, learning_rate=0.02)
SEQUENCE = SequenceConfig(
    text_dim=8,
    residual_dim=8,
    layers=1,
    heads=2,
    history_items=5,
    hidden_dropout=0.1,
    epochs=4,
    batch_size=64,
    learning_rate=0.02,
)
WORDED = TextConfig(
    copies=1,
    text_dim=6,
    residual_dim=8,
    history_items=4,
    positions_per_user=9,
    epochs=4,
    batch_size=64,
    learning_rate=0.02,
)
TOPICS = 3
TOWER_WEIGHTS = {UserTowerKind.RECENCY: 0.5, UserTowerKind.SEQUENCE: 0.8}


def text_vectors(n_items: int, *, width: int = 10, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((n_items, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def item_texts(n_items: int) -> list[str]:
    """A name of its own, a kind and a maker that others share."""
    return [f"name{row} kind{row % 4} | maker {row % 7}" for row in range(n_items)]


def towers(n_items: int, *, config: TowerConfig = SMALL, seed: int = 0, topics: int = 0) -> TwoTowers:
    """Random towers whose residuals and biases are large enough to matter."""
    torch.manual_seed(seed)
    reader = bag_reader(item_texts(n_items)) if isinstance(config, TextConfig) else None
    text = centred(text_vectors(n_items))
    words = Words.of(item_texts(n_items))
    text = beside(text, Topics.of(words, topics).read(words.vectors))
    model = TwoTowers(torch.from_numpy(text), config, reader=reader)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("residual", "item.bias")):
                weight.copy_(torch.randn(weight.shape))
    return model


def ensemble(n_items: int, *, seed: int = 0, topics: int = 0) -> TowerEnsemble:
    """Two random copies of one kind and one of the other."""
    drawn = [
        (UserTowerKind.RECENCY, 1, SMALL),
        (UserTowerKind.RECENCY, 2, SMALL),
        (UserTowerKind.SEQUENCE, 1, SEQUENCE),
    ]
    members = [
        Member(kind, copy, towers(n_items, config=config, seed=seed + place, topics=topics))
        for place, (kind, copy, config) in enumerate(drawn)
    ]
    return TowerEnsemble(tuple(members), TOWER_WEIGHTS)


def random_log(n_items: int, *, users: int = 60, longest: int = 12, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, n_items + 1) ** 0.7
    share /= share.sum()
    return Histories.of([rng.choice(n_items, rng.integers(0, longest), p=share).tolist() for _ in range(users)])


def circle(n_items: int, *, users: int, length: int = 8, seed: int = 0) -> tuple[Histories, Holdout]:
    """Planted: item i is always followed by (i + 1) mod n. Training lists, and one next item for each user."""
    starts = np.random.default_rng(seed).integers(0, n_items, users)
    lists = ((starts[:, None] + np.arange(length)) % n_items).tolist()
    targets = ((starts + length) % n_items)[:, None].tolist()
    known = Histories.of(lists)
    return known, Holdout("validation", np.arange(users), known, Histories.of(targets))


def nobody() -> Holdout:
    return Holdout("validation", np.zeros(0, dtype=np.int64), Histories.of([]), Histories.of([]))


def catalog(texts: list[str]) -> Catalog:
    ids = [f"i{row}" for row in range(len(texts))]
    return Catalog(pl.DataFrame({ITEM_ID: ids, TITLE: texts, TEXT: texts}), Vocabulary(ids))


def config(*, per_source: int = 5, epochs: int = 3, copies: int = 1) -> RetrieverConfig:
    pace = {"epochs": epochs, "copies": copies}
    return RetrieverConfig(
        recency=SMALL.model_copy(update=pace),
        sequence=SEQUENCE.model_copy(update=pace),
        train=TrainConfig(precision="float32"),
        topics=TOPICS,
        transitions=TransitionsConfig(history_items=6),
        per_source=per_source,
    )


def retriever(
    n_items: int, *, per_source: int = 5, train: Histories | None = None, seed: int = 0, topics: int = 0
) -> Retriever:
    model = ensemble(n_items, seed=seed, topics=topics)
    settings = config(per_source=per_source).model_copy(update={"topics": topics})
    log = train or random_log(n_items, seed=seed)
    trend = Trend.fit(log, n_items, settings.trend_days)
    columns = transforms(model.kinds, trend)
    weights = {"recency": 0.5, "sequence": 0.3, TRANSITIONS: 0.4, TEXT_SOURCE: 1.5}
    vectors = model.item_vectors()
    text, words = centred(text_vectors(n_items)), Words.of(item_texts(n_items))
    stand_ins = find_stand_ins(Likeness(text, words), np.bincount(log.item_rows, minlength=n_items))
    return Retriever(
        config=settings,
        towers=model,
        transitions=replace(Transitions.fit(log, n_items, settings.transitions), stand_ins=stand_ins),
        fusion=LinearFusion(
            columns, dict.fromkeys(columns, -0.2) | weights, dict.fromkeys(columns, 1.0) | {TRANSITIONS: 0.3}
        ),
        item_vectors=vectors,
        text=text,
        text_space=TextSpace.of(text_vectors(n_items)),
        words=words,
        topics=Topics.of(words, topics),
        trend=trend,
        recent_popularity=np.random.default_rng(seed + 1).permutation(n_items).astype(np.float32),
        index=FlatIndex(vectors),
    )


def is_mapped(array) -> bool:
    """Whether an array lies in a file."""
    while array is not None and not isinstance(array, mmap):
        array = getattr(array, "base", None)
    return array is not None
