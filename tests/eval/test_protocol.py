from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.schema import NO_ITEM, Candidates, Histories, Holdout
from eval.metrics import KS
from eval.protocol import CatalogStats, candidate_recall, evaluate
from eval.slices import popularity_thirds
from store.errors import BadInput

DAY = 86_400


def lists(rows) -> Candidates:
    rows = np.array(rows, dtype=np.int64)
    score = np.where(rows == NO_ITEM, -np.inf, -np.arange(rows.shape[1], dtype=np.float32))
    return Candidates(rows, score.astype(np.float32))


def holdout(histories, targets, *, history_times=None, target_times=None) -> Holdout:
    known, wanted = Histories.of(histories), Histories.of(targets)
    if history_times is not None:
        known = Histories(known.item_rows, known.offsets, np.array(history_times, dtype=np.int64))
        wanted = Histories(wanted.item_rows, wanted.offsets, np.array(target_times, dtype=np.int64))
    return Holdout("test", np.arange(len(known)), known, wanted)


def ten(*first) -> list[int]:
    """A list of ten rows that begins with `first`, filled up with rows from 20 on."""
    return [*first, *range(20, 30 - len(first))]


STATS = CatalogStats(np.array([8, 4, 2, 1, 0, *[1] * 25], dtype=np.int64), 8)


def test_means_are_over_all_users_and_the_unserved_are_counted():
    found = evaluate(lists([ten(0), [NO_ITEM] * 10, ten(9, 1)]), holdout([[5], [6], [7]], [[0], [1], [1]]), STATS)
    assert found.users == 3
    assert found.unserved == 1
    assert found.metrics["recall@10"] == pytest.approx(2 / 3)
    assert found.metrics["ndcg@10"] == pytest.approx((1 + 0 + 1 / log2(3)) / 3)
    assert found.metrics["mrr@10"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert found.per_user["ndcg@10"] == pytest.approx([1, 0, 1 / log2(3)])


def test_no_metric_is_given_deeper_than_the_lists():
    asked = holdout([[5]], [[0]])
    shallow = evaluate(lists([ten(0)]), asked, STATS)
    assert {int(name.partition("@")[2]) for name in shallow.metrics} == {1, 5, 10}
    ended = evaluate(lists([[*ten(0), NO_ITEM]]), asked, STATS)  # the source had no more to give
    assert ended.metrics["recall@100"] == 1
    whole = evaluate(lists([list(range(30))]), asked, STATS)
    assert {int(name.partition("@")[2]) for name in whole.metrics} == set(KS)


def test_nothing_of_ten_is_said_about_lists_of_five():
    found = evaluate(lists([[0, 1, 2, 3, 4]]), holdout([[5]], [[0]]), STATS)
    assert not [name for name in found.metrics if name.endswith("@10")]
    assert found.slices["target_item/warm"] == {"users": 1, "targets": 1}


def test_coverage_novelty_and_repeats_by_hand():
    # Three lists of which one is empty and one ends after two items, one of them known to the user.
    candidates = lists([ten(0), [1, 4, *[NO_ITEM] * 8], [NO_ITEM] * 10])
    found = evaluate(candidates, holdout([[9], [1], [9]], [[0], [0], [0]]), STATS).metrics
    assert found["coverage@10"] == pytest.approx(12 / 30)
    # Taken by 8, 4 and 1 of 8 users: 0, 1 and 3 bits. Item 4, that nobody took, counts as taken once.
    first, second = (0 + 9 * 3) / 10, (1 + 3) / 2
    assert found["novelty@10"] == pytest.approx((first + second) / 2)
    assert found["repeat@10"] == pytest.approx(1 / 12)


def test_only_the_first_ten_places_are_shown():
    deep = lists([[*ten(0), 11, 12]])
    asked = holdout([[11]], [[0]])
    assert evaluate(deep, asked, STATS).metrics["coverage@10"] == pytest.approx(10 / 30)
    assert evaluate(deep, asked, STATS).metrics["repeat@10"] == 0


def test_stats_are_counted_from_the_training_histories():
    stats = CatalogStats.of(Histories.of([[0, 2, 0], [], [2]]), 4)
    assert stats.train_popularity.tolist() == [2, 0, 2, 0]
    assert stats.train_users == 2
    with pytest.raises(ValueError, match="train_users is 0"):
        CatalogStats(np.zeros(3, np.int64), 0)


def test_thirds_hold_a_third_of_the_interactions_each_and_no_tie_is_split():
    popularity = np.array([3, 9, 0, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1])  # 9 + 3 × 3 + 9 × 1 = 27
    assert popularity_thirds(popularity).tolist() == [1, 0, -1, 1, 1, *[2] * 9]
    assert popularity_thirds(np.array([5, 5, 5])).tolist() == [0, 0, 0]
    assert popularity_thirds(np.zeros(2, np.int64)).tolist() == [-1, -1]


def test_slices_by_hand():
    candidates = lists([ten(0), ten(9, 4), ten(1)])
    asked = holdout([[5] * 3, [6] * 12, []], [[0], [4], [2]])
    found = evaluate(candidates, asked, STATS).slices
    assert found["target_item/warm"] == {"users": 2, "targets": 2, "recall@10": 0.5, "ndcg@10": 0.5}
    assert found["target_item/cold"]["ndcg@10"] == pytest.approx(1 / log2(3))
    assert found["history_length/0"]["users"] == 1
    assert found["history_length/1-4"]["recall@10"] == 1
    assert found["history_length/10-49"]["recall@10"] == 1
    assert "history_length/5-9" not in found
    assert "history_length/50+" not in found
    assert not [name for name in found if name.startswith("day/")]


def test_every_target_is_in_one_slice_of_each_kind():
    rng = np.random.default_rng(1)
    asked = holdout(
        [rng.integers(0, 30, n).tolist() for n in rng.integers(0, 70, 200)],
        [rng.choice(30, n, replace=False).tolist() for n in rng.integers(1, 5, 200)],
    )
    rows = rng.permuted(np.tile(np.arange(30), (200, 1)), axis=1)[:, :10]
    found = evaluate(lists(rows), asked, STATS).slices
    targets = {}
    for name, figures in found.items():
        kind = name.partition("/")[0]
        targets[kind] = targets.get(kind, 0) + figures["targets"]
    every = len(asked.targets.item_rows)
    cold = found["target_item/cold"]["targets"]
    assert targets == {"target_item": every, "target_popularity": every - cold, "history_length": every}


def test_a_slice_of_targets_counts_only_these_for_users_who_have_one():
    # The user wants a warm and a cold item; the cold one is in place 2, the warm one is missed.
    found = evaluate(lists([ten(9, 4)]), holdout([[5]], [[0, 4]]), STATS).slices
    assert found["target_item/cold"]["recall@10"] == 1
    assert found["target_item/cold"]["ndcg@10"] == pytest.approx(1 / log2(3))
    assert found["target_item/warm"]["recall@10"] == 0
    assert found["history_length/1-4"]["recall@10"] == 1 / 2


def test_same_day_is_the_utc_day_of_the_last_history_item():
    asked = holdout(
        [[5, 6], [5], [5], [5], []],
        [[0], [0], [0], [0], [0]],
        history_times=[0, 10 * DAY, 10 * DAY + DAY - 1, -DAY, Histories.NO_TIME],
        target_times=[10 * DAY + 5, 11 * DAY, -1, 5, 5],
    )
    found = evaluate(lists([ten(0), ten(9), ten(9, 0), ten(0), ten(0)]), asked, STATS).slices
    assert found["day/later"] == {"users": 1, "targets": 1, "recall@10": 0, "ndcg@10": 0}
    assert found["day/same"]["users"] == 2
    assert found["day/same"]["ndcg@10"] == pytest.approx((1 + 1 / log2(3)) / 2)


def test_candidate_recall_is_the_ceiling_at_every_depth():
    candidates = lists([[1, 2, 0, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
    assert candidate_recall(candidates, Histories.of([[0], [9]])) == {1: 0, 5: 0.5, 7: 0.5}


def test_an_empty_holdout_and_foreign_rows_are_refused():
    with pytest.raises(BadInput, match="the test part of this split has no user"):
        evaluate(lists(np.zeros((0, 10))), holdout([], []), STATS)
    with pytest.raises(ValueError, match="1 candidates name rows outside the catalog of 30 items, such as 30"):
        evaluate(lists([ten(30)]), holdout([[5]], [[0]]), STATS)
    with pytest.raises(ValueError, match="1 targets name rows outside"):
        evaluate(lists([ten(1)]), holdout([[5]], [[31]]), STATS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_permuted_world_has_the_same_figures(seed):
    rng = np.random.default_rng(seed)
    users, items, depth = int(rng.integers(1, 8)), int(rng.integers(10, 25)), 10
    rows = rng.permuted(np.tile(np.arange(items), (users, 1)), axis=1)[:, :depth]
    known = [rng.integers(0, items, n).tolist() for n in rng.integers(0, 8, users)]
    wanted = [rng.choice(items, n, replace=False).tolist() for n in rng.integers(1, 4, users)]
    popularity = rng.integers(0, 6, items)
    before = evaluate(lists(rows), holdout(known, wanted), CatalogStats(popularity, 9))

    new_item, new_user = rng.permutation(items), rng.permutation(users)
    moved = np.empty_like(popularity)
    moved[new_item] = popularity
    asked = holdout([new_item[h].tolist() for h in known], [new_item[t].tolist() for t in wanted])
    after = evaluate(lists(new_item[rows]).take(new_user), asked.take(new_user), CatalogStats(moved, 9))
    assert after.metrics == pytest.approx(before.metrics)
    assert set(after.slices) == set(before.slices)
    for name, figures in before.slices.items():
        assert after.slices[name] == pytest.approx(figures)


def test_among_some_items_coverage_is_the_share_of_these_and_short_lists_are_whole():
    cold = np.array([4, 6, 8])
    asked = holdout([[5], [6]], [[4], [8]])
    found = evaluate(lists([[4, 6, 8], [6, 4, 8]]), asked, STATS, among=cold)
    assert found.metrics["ndcg@10"] == pytest.approx((1 + 1 / log2(4)) / 2)
    assert found.metrics["coverage@10"] == 1
    first = evaluate(lists([[4, NO_ITEM], [4, NO_ITEM]]), asked, STATS, among=cold)
    assert first.metrics["coverage@10"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("row", "target", "told"),
    [(5, 4, "1 candidates are not among the 3 items.*row 5"), (4, 5, "1 targets are not among the 3 items.*row 5")],
)
def test_what_is_not_among_the_items_to_choose_from_is_refused(row, target, told):
    with pytest.raises(ValueError, match=told):
        evaluate(lists([[row, NO_ITEM]]), holdout([[9]], [[target]]), STATS, among=np.array([4, 6, 8]))
