from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Candidates, Histories
from fusion.linear import LOG_FLOOR
from retrieval import retriever as module
from retrieval.explain import contributions
from retrieval.retriever import (
    POPULARITY,
    TEXT,
    TOWERS,
    TRANSITIONS,
    Retriever,
    best_of_dense,
    best_of_sparse,
    concatenated,
    union,
)
from tests.retrieval.toy import random_log, retriever

N = 40
PLAIN = retriever(N)
ASKED = Histories.of([[3, 8, 1], [0], [39, 39, 4, 0, 2, 17, 11, 30], [5, 6], list(range(30)), [12, 13, 12]])
HISTORIES = st.lists(st.lists(st.integers(0, N - 1), max_size=9), min_size=1, max_size=5)


def dense_sources(found: Retriever, histories: Histories) -> dict[str, np.ndarray]:
    """(B, N) scores of each source, by plain arithmetic over the whole catalog."""
    config = found.transitions.config
    towers = found.towers.user_vectors(histories.last(found.config.towers.history_items)) @ found.item_vectors.T
    matrix = found.transitions.weights.toarray()
    transitions, text = np.zeros((len(histories), N)), np.zeros((len(histories), N))
    for user in range(len(histories)):
        recent = histories[user][::-1][: config.history_items]
        decay = config.history_decay ** np.arange(len(recent))
        transitions[user] = decay @ matrix[recent] if len(recent) else 0
        profile = decay @ found.text[recent] if len(recent) else np.zeros(found.text.shape[1])
        text[user] = found.text @ profile / max(np.linalg.norm(profile), 1e-6)
    return {TOWERS: towers, TRANSITIONS: transitions, TEXT: text}


def dense_fusion(found: Retriever, histories: Histories) -> np.ndarray:
    sources, weights, typical = dense_sources(found, histories), found.fusion.weights, found.fusion.typical
    return (
        weights[TOWERS] * sources[TOWERS]
        + weights[TRANSITIONS] * np.log(sources[TRANSITIONS] / typical[TRANSITIONS] + LOG_FLOOR)
        + weights[TEXT] * sources[TEXT]
    )


def expected_rows(found: Retriever, histories: Histories, depth: int, *, exclude_known: bool) -> list[list[int]]:
    """Fusion over the union of the best of both sources, by sorting the whole catalog."""
    sources, fused = dense_sources(found, histories), dense_fusion(found, histories)
    wanted, lists = max(depth, found.config.per_source), []
    for user in range(len(histories)):
        known = set(histories[user].tolist()) if exclude_known else set()
        fresh = [row for row in range(N) if row not in known]
        by_towers = sorted(fresh, key=lambda row: -sources[TOWERS][user, row])[:wanted]
        counted = [row for row in fresh if sources[TRANSITIONS][user, row] > 0]
        by_transitions = sorted(counted, key=lambda row: -sources[TRANSITIONS][user, row])[:wanted]
        both = set(by_towers) | set(by_transitions)
        lists.append(sorted(both, key=lambda row: -fused[user, row])[:depth])
    return lists


def shown(candidates: Candidates) -> list[list[int]]:
    return [rows[rows != NO_ITEM].tolist() for rows in candidates.item_rows]


@pytest.mark.parametrize("exclude_known", [True, False])
@pytest.mark.parametrize("depth", [1, 5, 9])
def test_candidates_are_the_dense_fusion_over_the_union(depth, exclude_known):
    found = PLAIN.candidates(ASKED, depth, exclude_known=exclude_known)
    assert shown(found) == expected_rows(PLAIN, ASKED, depth, exclude_known=exclude_known)
    fused = dense_fusion(PLAIN, ASKED)
    sources = dense_sources(PLAIN, ASKED)
    users = np.arange(len(ASKED))[:, None]
    np.testing.assert_allclose(found.score, fused[users, found.item_rows], rtol=1e-4, atol=1e-4)
    for name, scores in found.sources.items():
        np.testing.assert_allclose(scores, sources[name][users, found.item_rows], rtol=1e-4, atol=1e-5)
    assert (found.score[:, :-1] >= found.score[:, 1:]).all()


@given(HISTORIES, st.integers(1, N + 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_lists_hold_as_many_different_items_as_exist(lists, depth, exclude_known):
    found = PLAIN.candidates(Histories.of(lists), depth, exclude_known=exclude_known)
    assert found.item_rows.shape == (len(lists), depth)
    for items, rows, score in zip(lists, found.item_rows, found.score, strict=True):
        allowed = set(range(N)) - (set(items) if exclude_known else set())
        count = min(depth, len(allowed))
        assert (rows[count:] == NO_ITEM).all()
        assert (score[count:] == -np.inf).all()
        assert np.isfinite(score[:count]).all()
        assert len(set(rows[:count].tolist())) == count
        assert set(rows[:count].tolist()) <= allowed


def test_a_user_who_knows_everything_gets_an_empty_list_and_the_others_theirs():
    found = PLAIN.candidates(Histories.of([list(range(N)), [1]]), 5)
    assert shown(found)[0] == []
    assert shown(found)[1] == shown(PLAIN.candidates(Histories.of([[1]]), 5))[0]


def test_deeper_than_the_catalog_gives_all_that_is_not_known():
    found = PLAIN.candidates(ASKED, 3 * N)
    for user in range(len(ASKED)):
        assert set(shown(found)[user]) == set(range(N)) - set(ASKED[user].tolist())


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_batches_change_nothing(batch, monkeypatch):
    mixed = Histories.of([[3, 8, 1], [], [39, 4], list(range(38)), []])
    expected = PLAIN.candidates(mixed, 7)
    monkeypatch.setattr(module, "USERS_AT_ONCE", batch)
    found = PLAIN.candidates(mixed, 7)
    np.testing.assert_array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5, atol=1e-5)
    assert found.sources.keys() == expected.sources.keys()
    for name, scores in found.sources.items():
        np.testing.assert_allclose(
            scores[found.present], expected.sources[name][found.present], rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_an_empty_history_gets_the_recent_popular_items():
    popularity = PLAIN.recent_popularity
    order = np.argsort(-popularity, kind="stable")
    found = PLAIN.candidates(Histories.of([[], [4, 2]]), 6)
    assert found.item_rows[0].tolist() == order[:6].tolist()
    np.testing.assert_array_equal(found.score[0], popularity[order[:6]])
    np.testing.assert_array_equal(found.sources[POPULARITY][0], found.score[0])
    assert not found.sources[POPULARITY][1].any()
    assert not any(found.sources[name][0].any() for name in (TOWERS, TRANSITIONS, TEXT))
    assert shown(found)[1] == shown(PLAIN.candidates(Histories.of([[4, 2]]), 6))[0]


def test_an_empty_history_gets_the_whole_catalog_where_it_is_asked_for():
    found = PLAIN.candidates(Histories.of([[]]), N + 3)
    assert sorted(shown(found)[0]) == list(range(N))


def test_nobody_to_ask_gives_no_lists():
    assert PLAIN.candidates(Histories.of([]), 3).item_rows.shape == (0, 3)


def test_any_items_can_be_scored():
    rows = np.array([[7, 1, NO_ITEM], [2, NO_ITEM, NO_ITEM]])
    histories = Histories.of([[3, 8], [0]])
    found = PLAIN.scored(rows, histories)
    fused = dense_fusion(PLAIN, histories)
    assert [sorted(items) for items in shown(found)] == [[1, 7], [2]]
    for user, items in enumerate(shown(found)):
        np.testing.assert_allclose(found.score[user][: len(items)], fused[user][items], rtol=1e-4)
    assert (found.score[~found.present] == -np.inf).all()


def test_ties_of_the_fusion_go_to_the_lower_row():
    flat = replace(PLAIN, fusion=replace(PLAIN.fusion, weights={TOWERS: 0.0, TRANSITIONS: 0.0, TEXT: 0.0}))
    rows = flat.candidates(Histories.of([[3, 8]]), 10).item_rows[0]
    assert rows.tolist() == sorted(rows)


def test_a_query_is_answered_by_the_nearest_texts():
    queries = PLAIN.text[[5, 9]].copy()
    found = PLAIN.candidates_for_texts(queries, Histories.of([[], [9]]), 4)
    cosine = queries @ PLAIN.text.T
    cosine[1, 9] = -np.inf
    assert found.item_rows.tolist() == np.argsort(-cosine, axis=1)[:, :4].tolist()
    assert found.item_rows[0, 0] == 5
    assert list(found.sources) == [TEXT]


@given(
    st.lists(st.lists(st.integers(-1, 12), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_union_equals_that_of_sets(both, cut):
    rows = np.array(both, dtype=np.int64)
    found = union(rows[:, :cut], rows[:, cut:])
    sets = [sorted(set(line) - {NO_ITEM}) for line in both]
    width = max(1, *map(len, sets))
    assert found.tolist() == [line + [NO_ITEM] * (width - len(line)) for line in sets]


@given(st.integers(0, 999), st.integers(1, 12), st.booleans())
@settings(max_examples=50, deadline=None)
def test_best_of_sparse_are_the_largest(seed, depth, excluding):
    rng = np.random.default_rng(seed)
    scores = sp.random(3, 10, density=0.5, random_state=rng, dtype=np.float32, format="csr")
    known = [rng.choice(10, rng.integers(0, 4), replace=False) for _ in range(3)] if excluding else None
    found = best_of_sparse(scores, depth, exclude=known)
    assert found.shape == (3, depth)
    for user, line in enumerate(scores.toarray()):
        fresh = [row for row in np.flatnonzero(line) if known is None or row not in known[user]]
        best = sorted(fresh, key=lambda row: -line[row])[:depth]
        assert sorted(found[user][found[user] != NO_ITEM].tolist()) == sorted(best)


def test_best_of_dense_breaks_ties_by_lower_row_and_leaves_out_minus_infinity():
    found = best_of_dense(np.array([[1, 3, 3, -np.inf]], dtype=np.float32), 6, name="x")
    assert found.item_rows.tolist() == [[1, 2, 0, NO_ITEM]]


def test_concatenated_lists_are_padded_to_the_depth():
    short = Candidates(np.array([[4]]), np.array([[2.0]], dtype=np.float32), {"a": np.ones((1, 1), np.float32)})
    found = concatenated([short, short.with_source("b", np.full((1, 1), 5, np.float32))], 2)
    assert found.item_rows.tolist() == [[4, NO_ITEM], [4, NO_ITEM]]
    assert found.score.tolist() == [[2, -np.inf], [2, -np.inf]]
    assert found.sources["a"].tolist() == [[1, 0], [1, 0]]
    assert found.sources["b"].tolist() == [[0, 0], [5, 0]]


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_contributions_sum_to_the_fused_score_without_what_no_history_item_gives(items, seed):
    rows = np.random.default_rng(seed).permutation(N)[:7]
    recent, parts = contributions(PLAIN, np.array(items, dtype=np.int64), rows)
    assert recent.tolist() == items[::-1][:6]  # the longer of both histories: 4 in the towers, 6 in the counts
    assert parts.shape == (len(recent), 7)
    histories = Histories.of([items])
    fused = dense_fusion(PLAIN, histories)[0, rows]
    weights = PLAIN.fusion.weights
    alone = weights[TOWERS] * PLAIN.item_vectors[rows, -1] + weights[TRANSITIONS] * np.log(LOG_FLOOR)
    np.testing.assert_allclose(parts.sum(axis=0), fused - alone, rtol=1e-3, atol=1e-3)


def test_the_item_that_a_candidate_always_follows_contributes_most():
    log = Histories.of([[1, 2, 20], [5, 2, 20], [7, 9, 30], [2, 20]] * 5)
    found = retriever(N, train=log)
    only_counts = replace(found, fusion=replace(found.fusion, weights={TOWERS: 0.0, TRANSITIONS: 1.0, TEXT: 0.0}))
    recent, parts = contributions(only_counts, np.array([2, 7, 33]), np.array([20, 30]))
    assert recent[parts.argmax(axis=0)].tolist() == [2, 7]
    assert parts[0].tolist() == [0, 0]  # nothing was ever seen with item 33


def test_an_empty_history_has_no_reasons():
    recent, parts = contributions(PLAIN, np.zeros(0, dtype=np.int64), np.array([1, 2]))
    assert len(recent) == 0
    assert parts.shape == (0, 2)


def test_equal_calls_give_equal_lists():
    histories = random_log(N, seed=9)
    one, other = PLAIN.candidates(histories, 8), PLAIN.candidates(histories, 8)
    np.testing.assert_array_equal(one.item_rows, other.item_rows)
    np.testing.assert_array_equal(one.score, other.score)
