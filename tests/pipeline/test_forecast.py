"""The forecast is arithmetic on two probes; here with machines whose speed is known."""

from dataclasses import replace

import numpy as np
import pytest

from config import with_overrides
from pipeline import forecast as module
from pipeline.forecast import (
    BLOCK_SLOWNESS,
    ITEM_OPERATIONS,
    JUDGING_SECONDS,
    USUAL_EPOCHS,
    Forecast,
    forecast,
    tower_operations,
)
from pipeline.train_retriever import nobody
from pipeline.workspace import Workspace, open_workspace
from retrieval import objective
from retrieval.towers import SequenceConfig, TowerConfig


@pytest.fixture
def ws(shop, monkeypatch) -> Workspace:
    """On a machine of a thousand operations a second in a softmax, and very many elsewhere."""
    monkeypatch.setattr(module, "_matrix_flops", lambda: 1e15)
    monkeypatch.setattr(module, "_softmax_flops", lambda width, *, low_precision: 1000.0)
    monkeypatch.setattr(module, "_texts_per_second", lambda ws: 30.0)
    return open_workspace(shop.run)


def with_settings(ws: Workspace, *settings: str) -> Workspace:
    return replace(ws, config=with_overrides(ws.config, settings))


def test_operations_of_a_kind_by_hand():
    recency = TowerConfig(text_dim=16, residual_dim=8, copies=3, epochs=2, batch_size=10)
    all_items = 10 * 50 * ITEM_OPERATIONS  # ten steps, each of which makes the vectors of 50 items
    assert tower_operations(recency, positions=100, items=50) == 3 * 2 * (100 * 6 * 50 * 24 + all_items)
    sequence = SequenceConfig(text_dim=16, residual_dim=16, copies=2, layers=3, epochs=20, batch_size=10)
    blocks = 6 * 3 * (3 * 16**2 + 16**2 + 2 * 4 * 16**2)  # queries, keys, values; out; there and back
    a_position = 6 * 50 * 16 + BLOCK_SLOWNESS * blocks
    assert tower_operations(sequence, positions=100, items=50) == 2 * USUAL_EPOCHS * (100 * a_position + all_items)


def test_the_towers_take_as_long_as_both_kinds_and_all_copies(ws):
    train = ws.split.train
    positions, items = int(np.maximum(train.lengths - 1, 0).sum()), len(np.unique(train.item_rows))
    ample = with_settings(ws, "retriever.train.budget_minutes=1e9", "retriever.recency.copies=2")
    expected = sum(
        tower_operations(config, positions=positions, items=items) for config in ample.config.retriever.towers.values()
    )
    found = forecast(ample, evaluation_users=0).steps["towers"]
    assert found == pytest.approx(expected / 1000 / 60)
    less = forecast(with_settings(ample, "retriever.sequence.copies=0"), evaluation_users=0).steps["towers"]
    assert less < found


def test_a_large_catalog_is_forecast_by_its_sample(ws, monkeypatch):
    monkeypatch.setattr(objective, "FULL_SOFTMAX_ITEMS", 10)
    steps = [
        forecast(
            with_settings(ws, "retriever.train.budget_minutes=1e9", f"retriever.train.sampled_items={items}"),
            evaluation_users=0,
        ).steps["towers"]
        for items in (1000, 2000)
    ]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.1)


def test_a_budget_bounds_the_towers_and_texts_take_their_time(ws):
    found = forecast(with_settings(ws, "retriever.train.budget_minutes=0.5"), evaluation_users=0)
    assert found.steps["towers"] == 0.5
    assert found.steps["reading the catalog"] == pytest.approx(60 / 30 / 60)


@pytest.mark.parametrize(("users", "asked"), [(0, None), (10**6, None), (3, 3)])
def test_an_evaluation_asks_group_b_and_nobody_else(ws, users, asked):
    asked = len(ws.selectors) if asked is None else asked
    assert 3 < len(ws.selectors) < len(ws.dataset.users) / 2
    found = forecast(ws, evaluation_users=users).steps["evaluation"]
    assert found == pytest.approx(asked * JUDGING_SECONDS / 60, rel=1e-3)


def test_a_reranker_that_may_earn_a_weight_is_half_asked_and_half_fitted_again(ws, monkeypatch):
    monkeypatch.setattr(module, "_matrix_flops", lambda: 1e9)
    short = with_settings(ws, "reranker.train.budget_minutes=0.01", "retriever.train.budget_minutes=0.5")
    steps = forecast(short, evaluation_users=0).steps
    assert steps["final fit"] == pytest.approx(0.5 + 0.01 / 2)
    reading = steps["reranker"] - 0.01
    assert reading > 0
    assert steps["evaluation"] == pytest.approx(reading / 2 + len(ws.selectors) * JUDGING_SECONDS / 60)


def test_a_reranker_of_few_lists_ends_before_its_budget(ws, monkeypatch):
    monkeypatch.setattr(module, "_matrix_flops", lambda: 1e11)
    trained = [
        forecast(
            with_settings(ws, "reranker.train.budget_minutes=1e9", f"reranker.train.epochs={epochs}"),
            evaluation_users=0,
        )
        for epochs in (1, 3)
    ]
    read = forecast(with_settings(ws, "reranker.train.budget_minutes=1e-9"), evaluation_users=0).steps["reranker"]
    once, thrice = (found.steps["reranker"] - read for found in trained)
    assert 0 < once < 60
    assert thrice == pytest.approx(3 * once)


def test_without_anybody_to_ask_there_is_no_evaluation_and_no_baseline(ws, monkeypatch):
    monkeypatch.setattr(Workspace, "selectors", nobody(ws.dataset.interactions))
    steps = forecast(ws, evaluation_users=2000).steps
    assert steps["evaluation"] == steps["baselines"] == 0


def test_the_probes_measure_something(shop):
    assert module._matrix_flops() > 1e8
    assert module._softmax_flops(16, low_precision=False) > 1e7
    assert module._softmax_flops(16, low_precision=True) > 1e6
    assert 0 < forecast(open_workspace(shop.run), evaluation_users=5).minutes < 1000


def test_words_for_people():
    assert Forecast({"towers": 12.4, "baselines": 0.1}).in_words() == "about 12 minutes (towers 12)"
    assert Forecast({"towers": 0.1}).in_words() == "about 1 minutes"
