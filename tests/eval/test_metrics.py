from math import log2

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Candidates, Histories
from eval.metrics import (
    KS,
    average_precision_at_k,
    hit_rate_at_k,
    membership,
    metrics_of,
    ndcg_at_k,
    per_user_metrics,
    recall_at_k,
    reciprocal_rank_at_k,
    relevance_of,
)


def lists(rows) -> Candidates:
    rows = np.array(rows, dtype=np.int64)
    score = np.where(rows == NO_ITEM, -np.inf, -np.arange(rows.shape[1], dtype=np.float32))
    return Candidates(rows, score.astype(np.float32))


def test_by_hand():
    # Three targets, found in places 1, 3 and 6 of six; the second user has two and finds one in place 2.
    relevance = np.array([[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0]], dtype=bool)
    count = np.array([3, 2])
    assert recall_at_k(relevance, count, k=5) == pytest.approx([2 / 3, 1 / 2])
    assert hit_rate_at_k(relevance, count, k=1) == pytest.approx([1, 0])
    assert reciprocal_rank_at_k(relevance, count, k=5) == pytest.approx([1, 1 / 2])
    ideal_of_three = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    ideal_of_two = 1 / log2(2) + 1 / log2(3)
    assert ndcg_at_k(relevance, count, k=5) == pytest.approx(
        [(1 / log2(2) + 1 / log2(4)) / ideal_of_three, (1 / log2(3)) / ideal_of_two]
    )
    assert average_precision_at_k(relevance, count, k=5) == pytest.approx([(1 / 1 + 2 / 3) / 3, (1 / 2) / 2])
    assert average_precision_at_k(relevance, count, k=6)[0] == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_the_ideal_of_ndcg_has_no_more_hits_than_places():
    relevance = np.array([[True, True]])
    assert ndcg_at_k(relevance, np.array([7]), k=2) == pytest.approx([1])
    assert recall_at_k(relevance, np.array([7]), k=2) == pytest.approx([2 / 7])


def test_a_list_shorter_than_k_is_scored_as_it_stands():
    found = per_user_metrics(lists([[4, 2]]), Histories.of([[2]]), ks=[1, 100])
    assert found["recall@1"] == [0]
    assert found["recall@100"] == [1]
    assert found["ndcg@100"] == pytest.approx([1 / log2(3)])


def test_a_user_without_candidates_scores_0_and_stays_in_the_mean():
    found = per_user_metrics(lists([[NO_ITEM, NO_ITEM], [5, NO_ITEM]]), Histories.of([[0], [5]]))
    for values in found.values():
        assert values.tolist() == [0, 1]


def test_lists_without_any_place():
    empty = Candidates(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32))
    for values in per_user_metrics(empty, Histories.of([[0], [5]])).values():
        assert values.tolist() == [0, 0]


def test_the_same_hits_have_the_same_figure_to_the_last_bit_however_long_the_list():
    targets = Histories.of([list(range(0, 90, 2))])
    short, long = list(range(90)), [*range(90), *range(200, 300)]
    a, b = per_user_metrics(lists([short]), targets), per_user_metrics(lists([long]), targets)
    assert all(a[name].tolist() == b[name].tolist() for name in a)
    everything = per_user_metrics(lists([short]), Histories.of([short]))
    assert everything["ndcg@100"].tolist() == [1.0]


def test_relevance_does_not_mix_users_up():
    # Each names the other's target, and row 0 next to NO_ITEM must not be taken for it.
    candidates = lists([[1, 0, NO_ITEM], [0, 1, 2], [3, NO_ITEM, NO_ITEM]])
    relevance = relevance_of(candidates, Histories.of([[0], [2, 1], [2]]))
    assert relevance.tolist() == [[False, True, False], [False, True, True], [False, False, False]]


def test_many_users_are_scored_in_parts_as_one_by_one():
    rng = np.random.default_rng(3)
    users, items, depth = 40_000, 50, 10
    rows = rng.permuted(np.tile(np.arange(items), (users, 1)), axis=1)[:, :depth]
    wanted = rng.integers(0, items, users)
    found = per_user_metrics(lists(rows), Histories.of(wanted[:, None].tolist()), ks=[10])
    hit = rows == wanted[:, None]
    assert np.array_equal(found["recall@10"], hit.any(axis=1))
    assert found["mrr@10"] == pytest.approx((hit / np.arange(1, depth + 1)).sum(axis=1))


@pytest.mark.parametrize("at_the_end", [True, False], ids=["ties-by-falling-id", "no-ties"])
def test_agrees_with_trec_eval_on_random_runs(at_the_end):
    rng = np.random.default_rng(11)
    users, items, depth = 120, 200, 130
    # Few distinct scores, hence many ties; trec_eval puts tied items in falling order of their names.
    score = rng.integers(0, 12, (users, items)).astype(np.float32)
    if not at_the_end:
        score = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1)
    order = np.lexsort((-np.broadcast_to(np.arange(items), score.shape), -score), axis=-1)[:, :depth]
    ends = np.where(np.arange(depth) < rng.integers(0, depth + 1, users)[:, None], order, NO_ITEM)
    candidates = Candidates(ends, np.take_along_axis(score, order, 1))
    targets = [sorted(rng.choice(items, rng.integers(1, 15), replace=False).tolist()) for _ in range(users)]
    ours = per_user_metrics(candidates, Histories.of(targets))

    truth = [ir_measures.Qrel(f"u{b}", f"i{row:03}", 1) for b, rows in enumerate(targets) for row in rows]
    run = [
        ir_measures.ScoredDoc(f"u{b}", f"i{row:03}", float(score[b, row]))
        for b in range(users)
        for row in ends[b]
        if row != NO_ITEM
    ]
    theirs = {"recall": "R", "ndcg": "nDCG", "map": "AP", "hit_rate": "Success"}
    wanted = {ir_measures.parse_measure(f"{theirs[n]}@{k}"): f"{n}@{k}" for n in theirs for k in KS}
    expected = {name: np.zeros(users) for name in wanted.values()}
    for metric in ir_measures.iter_calc(wanted, truth, run):
        expected[wanted[metric.measure]][int(metric.query_id[1:])] = metric.value
    for name, values in expected.items():
        assert ours[name] == pytest.approx(values, abs=1e-6), name
    reciprocal = np.zeros(users)
    for metric in ir_measures.iter_calc([ir_measures.RR], truth, run):
        reciprocal[int(metric.query_id[1:])] = metric.value
    for k in KS:  # trec_eval has no cut for it: beyond rank k the reciprocal rank is 0
        cut = np.where(reciprocal >= 1 / k - 1e-9, reciprocal, 0)
        assert ours[f"mrr@{k}"] == pytest.approx(cut, abs=1e-6)


def test_constant_scores_give_k_of_n_and_not_1():
    """A scorer that knows nothing, over candidates in shuffled order: the target's place is pure chance."""
    rng = np.random.default_rng(5)
    users, items = 20_000, 40
    shuffled = rng.permuted(np.tile(np.arange(items), (users, 1)), axis=1)
    blind = Candidates(shuffled, np.zeros(shuffled.shape, np.float32))
    constant = blind.ranked_by(np.ones(shuffled.shape, np.float32))
    found = per_user_metrics(constant, Histories.of([[7]] * users), ks=[1, 10])
    for k in (1, 10):
        chance = k / items
        spread = (chance * (1 - chance) / users) ** 0.5
        assert found[f"recall@{k}"].mean() == pytest.approx(chance, abs=4 * spread)
    expected = sum(1 / log2(rank + 1) for rank in range(1, 11)) / items
    assert found["ndcg@10"].mean() == pytest.approx(expected, abs=0.005)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_permuting_users_and_items_leaves_every_figure_unchanged(users, items, seed):
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, items + 1))
    rows = rng.permuted(np.tile(np.arange(items), (users, 1)), axis=1)[:, :depth]
    rows = np.where(np.arange(depth) < rng.integers(0, depth + 1, users)[:, None], rows, NO_ITEM)
    targets = [rng.choice(items, n, replace=False).tolist() for n in rng.integers(1, items + 1, users)]
    new_item = np.array([*rng.permutation(items), NO_ITEM])  # NO_ITEM, -1, stays itself
    new_user = rng.permutation(users)

    before = per_user_metrics(lists(rows), Histories.of(targets), ks=[1, 3, 10])
    renamed = Histories.of([new_item[t].tolist() for t in targets])
    after = per_user_metrics(lists(new_item[rows]).take(new_user), renamed.take(new_user), ks=[1, 3, 10])
    for name in before:
        assert after[name].tolist() == before[name][new_user].tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=5),
    st.integers(0, 4),
)
def test_every_metric_stays_between_0_and_1_and_only_grows_with_k_where_it_must(hits, beyond):
    relevance = np.array(hits)
    count = np.maximum(relevance.sum(axis=1) + beyond, 1)
    found = metrics_of(relevance, count, ks=range(1, 9))
    for name, values in found.items():
        assert ((values >= 0) & (values <= 1 + 1e-12)).all(), name
    for name in ("recall", "hit_rate", "mrr", "map"):
        steps = np.diff([found[f"{name}@{k}"] for k in range(1, 9)], axis=0)
        assert (steps >= -1e-12).all(), name


def test_membership_of_empty_lists():
    assert not membership(np.array([[0, 1]]), Histories.of([[]])).any()


def broken(**changes) -> tuple[Candidates, Histories]:
    rows = np.array([[0, 1, 2], [3, 4, 5]], dtype=np.int64)
    score = np.array([[3, 2, 1], [3, 2, 1]], dtype=np.float32)
    for (user, place), value in changes.get("rows", {}).items():
        rows[user, place] = value
    for (user, place), value in changes.get("score", {}).items():
        score[user, place] = value
    return Candidates(rows, score), Histories.of(changes.get("targets", [[0], [1]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {(1, 2): np.nan}}, "1 candidates have the score NaN, first in list 1"),
        ({"rows": {(1, 2): 3}}, "item row 3 stands twice in list 1"),
        ({"rows": {(0, 1): NO_ITEM}}, "goes on after it has ended"),
        ({"targets": [[0], []]}, "1 users have no target"),
        ({"targets": [[0, 0], [1]]}, "a target stands twice"),
        ({"targets": [[0]]}, "2 lists of candidates for 1 users"),
    ],
)
def test_lists_that_cannot_be_scored_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        relevance_of(*broken(**changes))


def test_a_nan_behind_the_end_of_a_list_is_no_score():
    candidates, targets = broken(rows={(0, 2): NO_ITEM}, score={(0, 2): np.nan})
    assert relevance_of(candidates, targets)[0].tolist() == [True, False, False]


def test_no_metric_at_0_or_without_targets():
    relevance = np.array([[True]])
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(relevance, np.array([1]), k=0)
    with pytest.raises(ValueError, match="1 users have no target"):
        hit_rate_at_k(relevance, np.array([0]), k=1)
    with pytest.raises(ValueError, match=r"1 lists, but target counts of shape \(2,\)"):
        ndcg_at_k(relevance, np.array([1, 1]), k=1)
