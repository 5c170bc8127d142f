"""Counts catch up with the log; what was trained, and what was searched with it, stays."""

from dataclasses import replace

import numpy as np
import pytest

from data.schema import Histories
from retrieval.refresh import refreshed
from retrieval.retriever import TRANSITIONS, Retriever
from tests.retrieval.toy import retriever

N = 40
DAY = 86_400


@pytest.fixture(scope="module")
def before() -> Retriever:
    return retriever(N)


@pytest.fixture(scope="module")
def log() -> Histories:
    """Item 7 is always followed by item 31, lately."""
    pairs = Histories.of([[7, 31]] * 30)
    return replace(pairs, timestamps=np.arange(60, dtype=np.int64) * DAY)


def test_new_transitions_and_fashions_are_known(before: Retriever, log: Histories) -> None:
    after = refreshed(before, log)
    asked = Histories.of([[7]])
    row = np.array([31])

    def score(found: Retriever, source: str) -> float:
        return float(found.scored(row[None], asked).sources[source][0, 0])

    assert score(after, TRANSITIONS) > score(before, TRANSITIONS)
    assert after.trend.columns(row[None], None)["taken in 30 days"][0, 0] == pytest.approx(np.log(15.5))
    assert after.recent_popularity.argmax() in (7, 31)


def test_an_item_that_is_taken_by_now_speaks_for_itself(before: Retriever, log: Histories) -> None:
    after = refreshed(before, log)
    assert after.transitions.stand_ins is not None
    spoken_for = np.flatnonzero(np.diff(after.transitions.stand_ins.indptr))
    assert len(spoken_for)
    assert not {7, 31} & set(spoken_for.tolist())
    assert {7, 31} >= set(after.transitions.stand_ins.indices.tolist())


def test_what_was_trained_stays(before: Retriever, log: Histories) -> None:
    after = refreshed(before, log)
    assert after.towers is before.towers
    assert after.index is before.index
    assert after.fusion is before.fusion
    assert after.transitions.config == before.transitions.config
    asked = Histories.of([[7], [1, 2]])
    assert np.array_equal(after.search(asked, 5).item_rows, before.search(asked, 5).item_rows)
