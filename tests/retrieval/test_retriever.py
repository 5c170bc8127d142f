from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.schema import NO_ITEM, Candidates, Histories
from fusion.linear import LOG_FLOOR
from retrieval import retriever as module
from retrieval.retriever import (
    LAST_TEXT,
    LIKENESS,
    POPULARITY,
    TEXT,
    TRANSITIONS,
    Retriever,
    RetrieverConfig,
    best_of_dense,
    best_of_sparse,
    concatenated,
    union,
)
from retrieval.trend import Trend
from tests.retrieval.toy import random_log, retriever

N = 40
PLAIN = retriever(N)
ASKED = Histories.of([[3, 8, 1], [0], [39, 39, 4, 0, 2, 17, 11, 30], [5, 6], list(range(30)), [12, 13, 12]])
HISTORIES = st.lists(st.lists(st.integers(0, N - 1), max_size=9), min_size=1, max_size=5)


def dense_sources(found: Retriever, histories: Histories) -> dict[str, np.ndarray]:
    """(B, N) scores of each source, by plain arithmetic over the whole catalog."""
    config = found.transitions.config
    towers: dict[str, list[np.ndarray]] = {}
    for member in found.towers.members:
        scores = member.towers.user_vectors(histories) @ member.towers.item_vectors().T
        towers.setdefault(member.kind.value, []).append(scores)
    # An item without a past has its stand-ins' row and column of the transitions.
    lending = np.eye(N) + found.transitions.stand_ins.toarray()
    matrix = lending @ found.transitions.weights.toarray() @ lending.T
    vocabulary = found.words.vectors.toarray()
    alike = (np.maximum(found.text @ found.text.T, 0) + 2 * vocabulary @ vocabulary.T) / 3
    transitions, text, last, likeness = (np.zeros((len(histories), N)) for _ in range(4))
    for user in range(len(histories)):
        recent = histories[user][::-1][: config.history_items]
        decay = config.history_decay ** np.arange(len(recent))
        transitions[user] = decay @ matrix[recent] if len(recent) else 0
        profile = decay @ found.text[recent] if len(recent) else np.zeros(found.text.shape[1])
        text[user] = found.text @ profile / max(np.linalg.norm(profile), 1e-6)
        likeness[user] = decay @ alike[recent] ** 3
        last[user] = found.text @ found.text[histories[user][-1]] if len(recent) else 0
    rows = np.tile(np.arange(N), (len(histories), 1))
    return {
        **{kind: np.mean(copies, axis=0) for kind, copies in towers.items()},
        TRANSITIONS: transitions,
        TEXT: text,
        LAST_TEXT: last,
        LIKENESS: likeness,
        **found.trend.columns(rows, histories.asked_at),
    }


def dense_fusion(found: Retriever, histories: Histories) -> np.ndarray:
    sources, weights, typical = dense_sources(found, histories), found.fusion.weights, found.fusion.typical
    assert set(weights) == set(sources)
    logs = sum(
        weights[name] * np.log(sources.pop(name) / typical[name] + LOG_FLOOR) for name in (TRANSITIONS, LIKENESS)
    )
    return logs + sum(weights[name] * scores for name, scores in sources.items())


def expected_unions(
    found: Retriever, histories: Histories, wanted: int, *, exclude_known: bool, where: np.ndarray | None = None
) -> list[list[int]]:
    """Of the best of the weighted towers and of the transitions, by sorting the whole catalog; best fused first."""
    sources, fused = dense_sources(found, histories), dense_fusion(found, histories)
    towers, lists = sum(weight * sources[kind] for kind, weight in found.towers.weights.items()), []
    for user in range(len(histories)):
        known = set(histories[user].tolist()) if exclude_known else set()
        fresh = [row for row in range(N) if row not in known and (where is None or where[row])]
        by_towers = sorted(fresh, key=lambda row: -towers[user, row])[:wanted]
        counted = [row for row in fresh if sources[TRANSITIONS][user, row] > 0]
        by_transitions = sorted(counted, key=lambda row: -sources[TRANSITIONS][user, row])[:wanted]
        lists.append(sorted({*by_towers, *by_transitions}, key=lambda row: -fused[user, row]))
    return lists


def expected_rows(found: Retriever, histories: Histories, depth: int, *, exclude_known: bool) -> list[list[int]]:
    unions = expected_unions(found, histories, max(depth, found.config.per_source), exclude_known=exclude_known)
    return [rows[:depth] for rows in unions]


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


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05])
def test_every_source_obeys_a_filter(share):
    where = np.random.default_rng(7).random(N) < share
    wanted = PLAIN.config.per_source
    expected = expected_unions(PLAIN, ASKED, wanted, exclude_known=True, where=where)
    assert shown(PLAIN.unions(ASKED, where=where)) == expected
    assert shown(PLAIN.candidates(ASKED, 3, where=where)) == [rows[:3] for rows in expected]
    fresh = [np.flatnonzero(where & ~np.isin(np.arange(N), ASKED[user])) for user in range(len(ASKED))]
    by_towers = [set(rows) for rows in shown(PLAIN.search(ASKED, N, where=where))]
    assert by_towers == [set(rows.tolist()) for rows in fresh]
    popular = shown(PLAIN.candidates(Histories.of([[]]), N, where=where))[0]
    assert popular == sorted(np.flatnonzero(where), key=lambda row: -PLAIN.recent_popularity[row])
    by_text = shown(PLAIN.candidates_for_texts(PLAIN.text[:1], Histories.of([[]]), N, where=where))[0]
    assert by_text == sorted(np.flatnonzero(where), key=lambda row: -(PLAIN.text @ PLAIN.text[0])[row])


def test_what_was_disliked_is_in_no_list_and_moves_nothing_else():
    histories = Histories.of([[3, 8, 1], [0], []])
    plain = shown(PLAIN.unions(histories, N))
    low = [plain[0][:2], [], plain[2][:3]]
    disliking = replace(histories, disliked=Histories.of(low))
    expected = [[row for row in rows if row not in low[user]] for user, rows in enumerate(plain)]
    for found in (PLAIN.unions(disliking, N), PLAIN.candidates(disliking, N)):
        assert shown(found) == expected
    few = shown(PLAIN.candidates(disliking, 5))
    assert [len(set(rows) - set(low[user])) for user, rows in enumerate(few)] == [5] * 3
    assert few[2] == expected[2][:5]  # what is popular, to whom nothing was known
    assert shown(PLAIN.unions(disliking, N, exclude_known=False)) == shown(
        PLAIN.unions(histories, N, exclude_known=False)
    )
    for user, rows in enumerate(shown(PLAIN.search(disliking, N))):
        assert set(rows) == set(range(N)) - {*histories[user].tolist(), *low[user]}


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
    assert not any(scores[0].any() for name, scores in found.sources.items() if name != POPULARITY)
    assert shown(found)[1] == shown(PLAIN.candidates(Histories.of([[4, 2]]), 6))[0]


def test_an_empty_history_gets_the_whole_catalog_where_it_is_asked_for():
    found = PLAIN.candidates(Histories.of([[]]), N + 3)
    assert sorted(shown(found)[0]) == list(range(N))


def test_nobody_to_ask_gives_no_lists():
    assert PLAIN.candidates(Histories.of([]), 3).item_rows.shape == (0, 3)


@pytest.mark.parametrize("exclude_known", [True, False])
@pytest.mark.parametrize("depth", [0, 3, 8])
def test_unions_are_whole_and_candidates_their_head(depth, exclude_known):
    found = PLAIN.unions(ASKED, depth, exclude_known=exclude_known)
    assert shown(found) == expected_unions(PLAIN, ASKED, max(depth, 5), exclude_known=exclude_known)
    assert found.depth > 5
    if depth:
        head = PLAIN.candidates(ASKED, depth, exclude_known=exclude_known)
        np.testing.assert_array_equal(found.head(depth).item_rows, head.item_rows)
    assert PLAIN.unions(Histories.of([])).item_rows.shape == (0, 0)


def test_the_weights_of_the_kinds_decide_what_the_search_finds_and_leave_its_scores():
    """The index is the same; only what is brought to the union changes."""
    alone = replace(PLAIN, transitions=replace(PLAIN.transitions, weights=sp.csr_matrix((N, N), dtype=np.float32)))
    found = {}
    for weights in ({"recency": 1.0, "sequence": 0.0}, {"recency": 0.0, "sequence": 1.0}):
        kinds = {kind: weights[kind] for kind in PLAIN.towers.kinds}
        tilted = replace(alone, towers=replace(alone.towers, weights=kinds))
        assert shown(tilted.candidates(ASKED, 5)) == expected_rows(tilted, ASKED, 5, exclude_known=True)
        found[weights["recency"]] = {frozenset(rows) for rows in shown(tilted.candidates(ASKED, 5))}
    assert found[0.0] != found[1.0]


def test_weighted_sums_of_the_same_items_for_every_history():
    rows = np.array([7, 1, 33])
    histories = Histories.of([[3, 8], [0], []])
    np.testing.assert_allclose(
        PLAIN.weighted_sums(histories, rows), dense_fusion(PLAIN, histories)[:, rows], rtol=1e-4, atol=1e-4
    )


def test_a_retriever_without_towers_is_refused():
    with pytest.raises(ValidationError, match=r"recency\.copies, sequence\.copies and text\.copies are all 0"):
        RetrieverConfig.model_validate({"recency": {"copies": 0}, "sequence": {"copies": 0}})
    only = RetrieverConfig.model_validate({"recency": {"copies": 0}})
    assert list(only.towers) == ["sequence"]


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
    flat = replace(PLAIN, fusion=replace(PLAIN.fusion, weights=dict.fromkeys(PLAIN.fusion.weights, 0.0)))
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


def test_equal_calls_give_equal_lists():
    histories = random_log(N, seed=9)
    one, other = PLAIN.candidates(histories, 8), PLAIN.candidates(histories, 8)
    np.testing.assert_array_equal(one.item_rows, other.item_rows)
    np.testing.assert_array_equal(one.score, other.score)


# --- items without a past


def test_an_item_without_a_past_is_found_through_its_stand_ins():
    found = retriever(N, train=Histories.of([[1, 2, 20], [5, 2, 20], [2, 20]] * 5))
    stand_ins = sp.lil_matrix((N, N), dtype=np.float32)
    stand_ins[33, 20], stand_ins[34, 2] = 1, 1
    lent = replace(found, transitions=replace(found.transitions, stand_ins=stand_ins.tocsr()))
    asked = Histories.of([[2], [34]])
    scores = lent.scored(np.array([[20, 33, 7], [20, 33, 7]]), asked).sources[TRANSITIONS]
    # After 2, and after 34 for which 2 speaks: 20, and 33 for which 20 speaks; nobody speaks for 7.
    expected = found.transitions.weights[2, 20]
    for user in range(2):
        assert np.sort(scores[user]).tolist() == pytest.approx([0, expected, expected])
    assert all(33 in rows for rows in lent.unions(asked).item_rows)


@pytest.mark.parametrize("exclude_known", [True, False])
def test_what_is_in_fashion_joins_the_union_unless_it_is_known(exclude_known):
    taken = np.array([20, 11, 20, 11, 33, 33, 33, 33, 33], dtype=np.int64)
    days = np.array([99, 99, 98, 98, 2, 2, 2, 2, 2], dtype=np.int64)  # 33 was in fashion long ago
    log = Histories(taken, np.array([0, len(taken)]), days * 86_400)
    found = replace(PLAIN, trend=Trend.fit(log, N, (3, 7, 200)), config=PLAIN.config.model_copy(update={"trending": 2}))
    lists = expected_unions(PLAIN, ASKED, PLAIN.config.per_source, exclude_known=exclude_known)
    for user, rows in enumerate(shown(found.unions(ASKED, exclude_known=exclude_known))):
        known = set(ASKED[user].tolist()) if exclude_known else set()
        assert set(rows) == {*lists[user], *({20, 11} - known)}
        assert len(set(rows)) == len(rows)
