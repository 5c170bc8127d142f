"""Rounds of training that end badly."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.schema import Candidates, Histories, Holdout
from rerank import train
from rerank.fit import RerankerConfig, TaskData, fit_reranker
from rerank.train import StopReason
from store.errors import NotFinite
from tests.rerank.test_train import FAST, quiet
from tests.rerank.tiny_bert import CONFIG, WORDS, untrained

CONFIGURED = RerankerConfig(
    encoder=CONFIG,
    train=FAST.model_copy(update={"validate_every_steps": 2, "epochs": 2, "head_learning_rate": 1e-2}),
    depth=6,
    residual=False,
)


def task(users: int = 24) -> TaskData:
    """Word i is followed by word i + 1."""
    texts = WORDS[:30]
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 26, users)
    asked = Holdout(
        "validation",
        np.arange(users),
        Histories.of([[start, start + 1, start + 2] for start in starts.tolist()]),
        Histories.of([[start + 3] for start in starts.tolist()]),
    )
    rows = np.array([np.append(rng.permutation(np.arange(26, 30))[:2], start + 3) for start in starts])
    rows = np.array([list(dict.fromkeys([*row.tolist(), *range(30)]))[:8] for row in rows])
    scores = np.tile(-np.arange(8, dtype=np.float32), (users, 1))
    found = Candidates(rows, scores, {})
    return TaskData(texts, asked.histories, asked, found, asked, found)


def poisoned_from(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The loss is NaN from the step of this number on, counted over all rounds."""
    calls = []

    def loss_of(*given: Any, **settings: Any) -> Any:
        calls.append(1)
        return true_loss(*given, **settings) * (math.nan if len(calls) >= step else 1.0)

    true_loss = train.loss_of
    monkeypatch.setattr(train, "loss_of", loss_of)


def test_a_loss_that_is_not_finite_before_anything_was_learnt_is_an_error(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_from(monkeypatch, 1)
    with pytest.raises(NotFinite, match=r"step 1 of the easy lists.*reranker\.train\.learning_rate \(now") as caught:
        fit_reranker(untrained(tiny_bert), task(), config=CONFIGURED, log=quiet)
    assert caught.value.exit_code == 12


def test_what_was_learnt_before_is_kept(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    reranker = untrained(tiny_bert)
    poisoned_from(monkeypatch, 12)
    *_, record = fit_reranker(reranker, task(), config=CONFIGURED, log=log.append)
    assert [one.stop for one in record.rounds].count(StopReason.NOT_FINITE) > 0
    assert any(one.best_step for one in record.rounds)
    assert all(bool(value.isfinite().all()) for value in reranker.trainable().values())
    assert "not finite" in [entry["event"] for entry in log]
