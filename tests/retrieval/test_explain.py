"""Reasons: what an item of the history is worth to a score is what the score loses without it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import Histories
from retrieval import explain
from retrieval.explain import contributions
from retrieval.retriever import TRANSITIONS
from tests.retrieval.toy import retriever

N = 40
PLAIN = retriever(N)


def fused(history: list[int], rows: np.ndarray) -> np.ndarray:
    """(K,) by asking for the scores of one history, item by item."""
    found = PLAIN.scored(rows[None, :], Histories.of([history]))
    by_row = dict(zip(found.item_rows[0].tolist(), found.score[0].tolist(), strict=True))
    return np.array([by_row[row] for row in rows.tolist()])


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=9), st.integers(0, 99))
@settings(max_examples=25)
def test_contributions_are_what_the_score_loses_without_each_item(history, seed):
    rows = np.random.default_rng(seed).permutation(N)[:7]
    recent, parts = contributions(PLAIN, np.array(history), rows)
    read = history[::-1][:6]  # the longest of the histories that sources read: 4, 5, and 6 in the counts
    assert recent.tolist() == read
    assert parts.shape == (len(read), 7)
    assert parts.dtype == np.float32
    for step in range(len(read)):
        place = len(history) - 1 - step
        without = history[:place] + history[place + 1 :]
        np.testing.assert_allclose(parts[step], fused(history, rows) - fused(without, rows), rtol=1e-3, atol=1e-3)


def test_the_item_that_a_candidate_always_follows_contributes_most():
    log = Histories.of([[1, 2, 20], [5, 2, 20], [7, 9, 30], [2, 20]] * 5)
    found = retriever(N, train=log)
    weights = dict.fromkeys(found.fusion.weights, 0.0) | {TRANSITIONS: 1.0}
    alone = replace(found.transitions, stand_ins=None)
    only_counts = replace(found, transitions=alone, fusion=replace(found.fusion, weights=weights))
    recent, parts = contributions(only_counts, np.array([2, 7, 33]), np.array([20, 30]))
    assert recent[parts.argmax(axis=0)].tolist() == [2, 7]
    assert parts[0].max() <= 0  # nothing was ever seen with item 33, which only makes the others older


def test_of_a_long_history_the_last_items_are_tried(monkeypatch):
    monkeypatch.setattr(explain, "MOST_ITEMS", 3)
    history = np.arange(20)
    recent, parts = contributions(PLAIN, history, np.array([30, 31]))
    assert recent.tolist() == [19, 18, 17]
    assert parts.shape == (3, 2)


@pytest.mark.parametrize("rows", [[1, 2], []])
def test_an_empty_history_has_no_reasons(rows):
    recent, parts = contributions(PLAIN, np.zeros(0, dtype=np.int64), np.array(rows, dtype=np.int64))
    assert len(recent) == 0
    assert parts.shape == (0, len(rows))
