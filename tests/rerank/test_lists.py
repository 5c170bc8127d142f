import dataclasses
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import NO_ITEM, Candidates, Histories, Holdout
from rerank.fit import next_item_lists
from rerank.lists import TrainingLists, batches, draw_list, earlier_positions

TEXTS = [f"item {row}" for row in range(30)]
LISTS = TrainingLists(
    TEXTS,
    Histories.of([[0, 1, 2], [], [5]]),
    np.array([3, 4, 6]),
    np.array([[10, 3, 11, 12, 1, 13], [20, 21, NO_ITEM, NO_ITEM, NO_ITEM, NO_ITEM], 6 * [NO_ITEM]]),
)


@given(st.integers(0, 2), st.integers(2, 40), st.floats(0, 1), st.integers(0, 1000))
def test_a_list_holds_the_target_once_and_nothing_taken(place: int, size: int, share: float, seed: int) -> None:
    drawn = draw_list(LISTS, place, size=size, hard_share=share, rng=np.random.default_rng(seed))
    rows = drawn.item_rows.tolist()
    history = set(LISTS.histories[place].tolist())
    assert drawn.target_place is not None
    assert rows[drawn.target_place] == LISTS.targets[place]
    assert len(set(rows)) == len(rows) == min(size, len(TEXTS) - len(history))
    assert not history & set(rows)
    assert NO_ITEM not in rows


def test_hard_share_is_the_share_of_the_retrievers_candidates() -> None:
    rng = np.random.default_rng(0)
    hard = {10, 11, 12, 13}  # of the first example's candidates, 3 is the target and 1 is known
    drawn = [set(draw_list(LISTS, 0, size=5, hard_share=1.0, rng=rng).item_rows.tolist()) for _ in range(20)]
    assert all(rows == hard | {3} for rows in drawn)
    counts = [
        len(hard & set(draw_list(LISTS, 0, size=5, hard_share=0.5, rng=rng).item_rows.tolist())) for _ in range(2000)
    ]
    # Easy negatives hit the hard rows by chance: of 26 free rows, 4 are hard.
    expected = 4 * 0.5 + np.mean([easy * (4 - (4 - easy)) / (26 - (4 - easy)) for easy in (1, 2, 2, 2, 3)])
    assert np.mean(counts) == pytest.approx(expected, abs=0.15)


def test_target_places_are_uniform() -> None:
    rng = np.random.default_rng(1)
    places = Counter(draw_list(LISTS, 0, size=4, hard_share=0.5, rng=rng).target_place for _ in range(4000))
    assert all(abs(places[place] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for place in range(4))


def test_easy_weights_are_followed() -> None:
    weights = np.zeros(30)
    weights[[7, 8]] = 3, 1
    lists = TrainingLists(TEXTS, LISTS.histories, LISTS.targets, LISTS.candidates, weights)
    rng = np.random.default_rng(2)
    seen = Counter(
        row for _ in range(2000) for row in draw_list(lists, 1, size=2, hard_share=0, rng=rng).item_rows.tolist()
    )
    assert set(seen) == {4, 7, 8}
    assert seen[7] / 2000 == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("exclude_known", [True, False])
def test_items_of_the_history_are_negatives_only_where_they_may_be_taken_again(exclude_known: bool) -> None:
    lists = replace(LISTS, exclude_known=exclude_known).take(np.array([0]))  # 1 is known, and among the candidates
    scored = replace(lists, prior=np.zeros(lists.candidates.shape, dtype=np.float32))
    for one in (lists, scored, lists.after_last_item()):
        assert one.exclude_known is exclude_known
    for one in (lists, scored):
        seen = {
            row
            for seed in range(40)
            for row in draw_list(one, 0, size=6, hard_share=1.0, rng=np.random.default_rng(seed)).item_rows.tolist()
        }
        assert (1 in seen) is not exclude_known


def test_one_seed_draws_one_list() -> None:
    first, second = (draw_list(LISTS, 0, size=9, hard_share=0.4, rng=np.random.default_rng(5)) for _ in range(2))
    assert first.item_rows.tolist() == second.item_rows.tolist()


@pytest.mark.parametrize("scored", [False, True])
def test_what_was_also_taken_later_is_no_negative(scored: bool) -> None:
    lists = dataclasses.replace(SCORED if scored else LISTS, also_taken=Histories.of([[3, 11, 13], [4], [6]]))
    rng = np.random.default_rng(0)
    drawn = [draw_list(lists, 0, size=27, hard_share=0.5, rng=rng) for _ in range(20)]
    # 0, 1 and 2 are known, 11 and 13 were taken later; of the candidates 1 is known.
    wanted = {3, 10, 12} if scored else {*range(30)} - {0, 1, 2, 11, 13}
    assert all(set(made.item_rows.tolist()) == wanted for made in drawn)
    assert all(made.item_rows[made.target_place] == 3 for made in drawn)
    kept = lists.take(np.array([1, 0]))
    assert kept.no_negatives(1).tolist() == [0, 1, 2, 11, 13]
    assert kept.after_last_item().no_negatives(1).tolist() == [2, 11, 13]


@pytest.mark.parametrize("with_prior", [False, True])
def test_of_a_user_asked_for_several_items_none_is_a_negative(with_prior: bool) -> None:
    asked = Holdout("validation", np.array([4]), Histories.of([[0, 1]]), Histories.of([[3, 5, 29]]))
    found = Candidates(np.array([[5, 3, 7, 8]]), np.array([[4, 3, 2, 1]], dtype=np.float32), {})
    lists = next_item_lists(TEXTS, asked, found, None, with_prior=with_prior)
    drawn = draw_list(lists, 0, size=28, hard_share=1.0, rng=np.random.default_rng(0))
    assert set(drawn.item_rows.tolist()) == ({3, 7, 8} if with_prior else {*range(2, 29)} - {5})
    assert drawn.item_rows[drawn.target_place] == 3


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="'targets': 2"):
        TrainingLists(TEXTS, LISTS.histories, LISTS.targets[:2], LISTS.candidates)


def test_taken_examples_keep_together() -> None:
    part = LISTS.take(np.array([2, 0]))
    assert part.targets.tolist() == [6, 3]
    assert [part.histories[place].tolist() for place in (0, 1)] == [[5], [0, 1, 2]]
    assert part.candidates[1, 0] == 10


def test_earlier_positions_ask_for_what_came_next() -> None:
    histories = Histories.of([[4, 5, 6, 7, 8], [1], [], [2, 3]])
    made = earlier_positions(TEXTS, histories, per_user=3, min_history=1, rng=np.random.default_rng(0))
    whole = {4: [4, 5, 6, 7, 8], 2: [2, 3]}
    assert len(made) == 3 + 1
    for place in range(len(made)):
        prefix = made.histories[place].tolist()
        assert [*prefix, made.targets[place]] == whole[prefix[0]][: len(prefix) + 1]
    assert made.candidates.shape == (4, 0)
    long = earlier_positions(TEXTS, histories, per_user=9, min_history=3, rng=np.random.default_rng(0))
    assert sorted(long.targets.tolist()) == [7, 8]
    assert not len(earlier_positions(TEXTS, Histories.of([[1]]), per_user=2, rng=np.random.default_rng(0)))


def test_batches_hold_every_place_once_and_like_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    made = batches(lengths, size=8, rng=np.random.default_rng(1))
    assert sorted(np.concatenate(made).tolist()) == list(range(1000))
    assert len(made) == 125
    random_spread = np.mean([np.ptp(lengths[start : start + 8]) for start in range(0, 1000, 8)])
    assert np.mean([np.ptp(lengths[places]) for places in made]) < 0.2 * random_spread
    again = batches(lengths, size=8, rng=np.random.default_rng(1))
    assert [part.tolist() for part in made] == [part.tolist() for part in again]


SCORED = TrainingLists(
    TEXTS,
    LISTS.histories,
    LISTS.targets,
    LISTS.candidates,
    prior=np.arange(18, dtype=np.float32).reshape(3, 6),
    teacher=-np.arange(18, dtype=np.float32).reshape(3, 6),
)


@given(st.integers(0, 1), st.integers(2, 9), st.integers(0, 1000))
def test_lists_of_scored_candidates_hold_nothing_else_and_their_own_scores(place: int, size: int, seed: int) -> None:
    drawn = draw_list(SCORED, place, size=size, hard_share=0.5, rng=np.random.default_rng(seed))
    rows = drawn.item_rows.tolist()
    fresh = {10, 3, 11, 12, 13} if place == 0 else {20, 21}  # 1 is known
    assert len(rows) == len(set(rows)) == min(size, len(fresh))
    assert set(rows) <= fresh
    where = [SCORED.candidates[place].tolist().index(row) for row in rows]
    assert SCORED.prior is not None
    assert drawn.prior is not None
    assert drawn.teacher is not None
    assert drawn.prior.tolist() == SCORED.prior[place, where].tolist()
    assert drawn.teacher.tolist() == (-SCORED.prior[place, where]).tolist()
    if place == 0:
        assert drawn.target_place is not None
        assert rows[drawn.target_place] == 3
    else:
        assert drawn.target_place is None  # it was not found, and is not put in


def test_found_are_the_examples_whose_target_is_a_candidate() -> None:
    assert SCORED.found.tolist() == [0]
    assert SCORED.take(np.array([1, 0])).found.tolist() == [1]


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prior has the shape \(3, 5\)"):
        TrainingLists(TEXTS, LISTS.histories, LISTS.targets, LISTS.candidates, prior=np.zeros((3, 5), dtype=np.float32))


def test_pairs_know_the_last_item_of_each_history_alone() -> None:
    pairs = LISTS.after_last_item()
    assert [pairs.histories[place].tolist() for place in range(3)] == [[2], [], [5]]
    assert pairs.targets.tolist() == [3, 4, 6]
    assert pairs.candidates.shape == (3, 0)
