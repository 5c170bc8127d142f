"""Weights of their own for short histories: found where planted, not where there is nothing, and served as fitted."""

from dataclasses import replace

import numpy as np
import pytest

from data.schema import Candidates, Histories
from fusion.linear import Transform
from recommend.reasons import lifts
from retrieval.fit import _by_length_where_it_helps, fitted_fusion
from retrieval.retriever import LIKENESS, TRANSITIONS
from retrieval.short_histories import after_short, parts_by_source, source_of, with_short
from tests.retrieval.toy import retriever

USERS, DEPTH = 400, 12
PLAIN = retriever(20)
COLUMNS = {"recency": Transform.RAW, "sequence": Transform.RAW}


def planted(*, alike: bool) -> tuple[Candidates, Histories]:
    """After a short history `recency` tells what comes next, after a long one `sequence`; or both tell half of it."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, USERS, DEPTH)).astype(np.float32)
    is_short = np.arange(USERS) % 2 == 0
    told = first + second if alike else np.where(is_short[:, None], first, second)
    target = (4 * told + rng.gumbel(size=told.shape)).argmax(axis=1)
    rows = np.broadcast_to(np.arange(DEPTH), told.shape).copy()
    sources = with_short({"recency": first, "sequence": second}, is_short)
    return Candidates(rows, np.zeros(told.shape, dtype=np.float32), sources), Histories.of(target[:, None].tolist())


@pytest.mark.parametrize("alike", [False, True])
def test_columns_of_short_histories_are_kept_only_where_cross_validation_gains_by_them(alike):
    candidates, targets = planted(alike=alike)
    log = []
    columns = _by_length_where_it_helps(candidates, targets, COLUMNS, PLAIN.trend, log.append)
    assert log[0]["kept"] is not alike
    if alike:
        assert columns == COLUMNS
        return
    assert set(columns) == {name for source in COLUMNS for name in (source, after_short(source))}
    weights = fitted_fusion(candidates, targets, columns, PLAIN.trend).weights
    after_a_short_one = {source: weights[source] + weights[after_short(source)] for source in COLUMNS}
    assert after_a_short_one["recency"] > 3 * abs(after_a_short_one["sequence"])
    assert weights["sequence"] > 2 * abs(weights["recency"])


def test_a_slice_of_few_users_keeps_near_the_weights_of_all():
    candidates, targets = planted(alike=False)
    few = np.flatnonzero((np.arange(USERS) % 2 == 1) | (np.arange(USERS) < 8))
    columns = {**COLUMNS, **{after_short(name): how for name, how in COLUMNS.items()}}
    own = []
    for places in (few, np.arange(USERS)):
        weights = fitted_fusion(candidates.take(places), targets.take(places), columns, PLAIN.trend).weights
        own.append(weights[after_short("recency")])
    assert 0 <= own[0] < 0.5 * own[1]


def test_a_short_history_is_served_by_its_own_weights_and_a_long_one_by_those_of_all():
    own = {after_short("recency"): 0.7, after_short(TRANSITIONS): 0.9}
    how = {name: PLAIN.fusion.transforms[source_of(name)] for name in own}
    fusion = replace(
        PLAIN.fusion,
        transforms={**PLAIN.fusion.transforms, **how},
        weights={**PLAIN.fusion.weights, **own},
        typical={**PLAIN.fusion.typical, **{name: PLAIN.fusion.typical[source_of(name)] for name in own}},
    )
    settings = PLAIN.config.model_copy(update={"short_history": 2})
    found = replace(PLAIN, config=settings, fusion=fusion)
    histories, items = Histories.of([[3, 5], [3, 5, 9]]), np.arange(20)
    before, after = (one.fused_scores(histories, items) for one in (PLAIN, found))
    sources = PLAIN.scored(np.broadcast_to(items, (2, 20)).copy(), histories)
    order = np.argsort(sources.item_rows, axis=1)
    recency = np.take_along_axis(sources.sources["recency"], order, 1)
    following = np.take_along_axis(sources.sources[TRANSITIONS], order, 1)
    logs = np.log(np.maximum(following, 0) / PLAIN.fusion.typical[TRANSITIONS] + 0.01)
    np.testing.assert_allclose(after[0], (before + 0.7 * recency + 0.9 * logs)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.diff(after[1] - before[1]), 0, atol=1e-4)  # all alike, so that the order stays
    retrieved = found.candidates(histories.take(np.array([0])), 8)
    told = lifts(found, retrieved)
    assert set(told) <= set(PLAIN.fusion.weights)
    np.testing.assert_allclose(sum(told.values()), 1, rtol=1e-4)
    parts = fusion.parts(retrieved)
    np.testing.assert_allclose(
        parts_by_source(fusion, retrieved)["recency"], parts["recency"] + parts[after_short("recency")]
    )
    assert LIKENESS in told
