"""A planted sequence, and towers of both kinds that learn it."""

import pytest
import torch

from data.schema import Histories, Holdout
from retrieval import objective
from retrieval.encode import centred
from retrieval.towers import TowerConfig, TwoTowers
from retrieval.train import TrainConfig, TrainRecord, train_towers
from tests.retrieval.bag_encoder import bag_reader
from tests.retrieval.toy import SEQUENCE, SMALL, WORDED, circle, item_texts, text_vectors

N = 24
TRAIN, VALIDATION = circle(N, users=96)
CONFIG = TrainConfig(patience=9, precision="float32", sampled_items=16)
KINDS = {"recency": SMALL, "sequence": SEQUENCE, "text": WORDED}


def sample(monkeypatch: pytest.MonkeyPatch, *, sampled: bool) -> None:
    """Has the softmax of any catalog sampled, if so."""
    if sampled:
        monkeypatch.setattr(objective, "FULL_SOFTMAX_ITEMS", 0)


def fresh(config: TowerConfig = SMALL, n_items: int = N, *, sparse: bool = False, seed: int = 3, **pace) -> TwoTowers:
    torch.manual_seed(seed)
    text = torch.from_numpy(centred(text_vectors(n_items)))
    return TwoTowers(text, config.model_copy(update=pace), sparse=sparse, reader=bag_reader(item_texts(n_items)))


def silent(_: dict) -> None:
    pass


def trained(
    model: TwoTowers, train: Histories = TRAIN, validation: Holdout = VALIDATION, *, log=silent, **more
) -> TrainRecord:
    name = next(f"{kind}-1" for kind, config in KINDS.items() if type(config) is type(model.config))
    return train_towers(model, train, validation, **{"config": CONFIG, "name": name, "log": log, **more})


def weights(model: TwoTowers) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
