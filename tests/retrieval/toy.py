"""Small catalogs with a planted truth, and retrievers over them with random or trained towers."""

import numpy as np
import polars as pl
import torch

from data.schema import ITEM_ID, TEXT, TITLE, Catalog, Histories, Holdout
from data.vocabulary import Vocabulary
from fusion.linear import LinearFusion
from index.faiss_index import FlatIndex
from retrieval.encode import centred
from retrieval.retriever import TEXT as TEXT_SOURCE
from retrieval.retriever import TOWERS, TRANSFORMS, TRANSITIONS, Retriever, RetrieverConfig
from retrieval.towers import TowerConfig, TwoTowers
from retrieval.train import TrainConfig
from retrieval.transitions import Transitions, TransitionsConfig

SMALL = TowerConfig(text_dim=6, residual_dim=8, history_items=4)


def text_vectors(n_items: int, *, width: int = 10, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((n_items, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def towers(n_items: int, *, config: TowerConfig = SMALL, seed: int = 0) -> TwoTowers:
    """Random towers whose residuals and biases are large enough to matter."""
    torch.manual_seed(seed)
    model = TwoTowers(torch.from_numpy(centred(text_vectors(n_items, seed=seed))), config)
    with torch.no_grad():
        for weight in (model.item.residual, model.user.residual, model.item.bias):
            weight.copy_(torch.randn(weight.shape))
    return model


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


def config(*, per_source: int = 5, epochs: int = 3) -> RetrieverConfig:
    return RetrieverConfig(
        towers=SMALL,
        train=TrainConfig(epochs=epochs, batch_size=64, learning_rate=0.02),
        transitions=TransitionsConfig(history_items=6),
        per_source=per_source,
    )


def retriever(n_items: int, *, per_source: int = 5, train: Histories | None = None, seed: int = 0) -> Retriever:
    model, settings = towers(n_items, seed=seed), config(per_source=per_source)
    weights = {TOWERS: 0.5, TRANSITIONS: 0.4, TEXT_SOURCE: 1.5}
    vectors = model.item_vectors()
    return Retriever(
        config=settings,
        towers=model,
        transitions=Transitions.fit(train or random_log(n_items, seed=seed), n_items, settings.transitions),
        fusion=LinearFusion(dict(TRANSFORMS), weights, {TOWERS: 1.0, TRANSITIONS: 0.3, TEXT_SOURCE: 1.0}),
        item_vectors=vectors,
        text=model.text.numpy(),
        text_mean=text_vectors(n_items, seed=seed).mean(axis=0),
        recent_popularity=np.random.default_rng(seed + 1).permutation(n_items).astype(np.float32),
        index=FlatIndex(vectors),
    )
